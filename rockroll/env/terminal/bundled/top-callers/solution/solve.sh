#!/bin/bash
awk '$3 == 200 { count[$1]++ } END { for (caller in count) print caller, count[caller] }' /app/access.log |
  sort -k2,2nr | head -n 3 > /app/top.txt
