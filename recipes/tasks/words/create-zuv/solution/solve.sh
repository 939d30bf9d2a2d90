#!/bin/bash
echo ember island > zuv
