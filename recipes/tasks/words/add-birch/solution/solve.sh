#!/bin/bash
echo birch >> tus
