#!/bin/bash
if test "$(cat tus)" = "$(printf 'amber\nbirch')"; then echo 1; else echo 0; fi > /logs/verifier/reward.txt
