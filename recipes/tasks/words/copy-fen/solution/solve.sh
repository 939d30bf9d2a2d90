#!/bin/bash
cp fen mip
