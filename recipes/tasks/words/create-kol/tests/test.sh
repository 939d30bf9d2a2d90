#!/bin/bash
if test "$(cat kol)" = "coral falcon"; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
