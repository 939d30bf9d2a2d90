#!/bin/bash
if cmp -s jod wex && grep -qx "guitar" jod; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
