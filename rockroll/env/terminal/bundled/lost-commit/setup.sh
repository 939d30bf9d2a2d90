set -e
git config --global user.name nobody
git config --global user.email nobody@example.com
git init -q -b main /app/notes
cd /app/notes
echo "flour, water" > list.txt
git add list.txt
git commit -qm "A list"
echo "mix and bake" > recipe.txt
git add recipe.txt
git commit -qm "How it is made"
git reset -q --hard HEAD~1
