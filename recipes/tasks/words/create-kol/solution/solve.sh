#!/bin/bash
echo coral falcon > kol
