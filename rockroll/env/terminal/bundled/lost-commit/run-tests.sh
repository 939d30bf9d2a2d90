#!/bin/bash
# Terminal-Bench's way: the tests lie in $TEST_DIR, and the exit code is the verdict.
bash "$TEST_DIR/check.sh"
