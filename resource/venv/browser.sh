#!/usr/bin/env bash
# A browser for the tests of pages, where it may be installed; they are skipped without one. Run by `make test`.
for name in chromium chromium-browser google-chrome; do command -v "$name" > /dev/null && exit 0; done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "Installing Debian's chromium for the tests of the studio's page"
    apt-get install -y -qq --no-install-recommends chromium > /dev/null 2>&1 \
        || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; } && exit 0
fi
echo "No browser found: the tests of the studio's page are skipped; sudo apt-get install chromium brings one." >&2
exit 0
