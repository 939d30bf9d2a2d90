#!/bin/bash
rm ruv
