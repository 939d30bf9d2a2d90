#!/bin/bash
if timeout 20 python3 /tests/cases.py; then echo 1 > /logs/verifier/reward.txt; else echo 0 > /logs/verifier/reward.txt; fi
