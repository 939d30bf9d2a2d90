#!/bin/bash
if ! test -e ruv && grep -qx ruv hin; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
