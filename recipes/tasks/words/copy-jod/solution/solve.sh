#!/bin/bash
cp jod wex
