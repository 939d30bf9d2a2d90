set -e
cd /app/notes
test "$(git rev-parse --abbrev-ref HEAD)" = main
test "$(git log -1 --format=%s main)" = "How it is made"
test "$(git log --format=%s main | wc -l)" = 2
test "$(git show main:recipe.txt)" = "mix and bake"
