#!/bin/bash
if test "$(cat zuv)" = "ember island"; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
