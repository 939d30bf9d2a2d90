#!/bin/bash
if cmp -s fen mip && grep -qx "copper daisy" fen; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
