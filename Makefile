# make demo   a room from one picture, over real DDS: out/demo.mp4, demo.png, demo.mcap, report.json
# make test   every test
# make setup  .venv with all that both need; they call it themselves
# make clean  remove .venv and out/
PYTHON ?= python3
READY := .venv/.ready

.PHONY: help demo test setup clean
help:
	@sed -n 's/^# //p' Makefile

demo: $(READY)
	.venv/bin/mirage demo

test: $(READY)
	.venv/bin/python -m pytest -q --durations=10 test

setup: $(READY)

clean:
	rm -rf .venv out

# An environment does not survive being moved, so one of another folder is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): constraints.txt requirements.txt requirements-ros.txt setup.py package.xml CMakeLists.txt $(wildcard msg/* srv/* action/*) \
          $(shell find resource/venv -type f)
	@PYTHON="$(PYTHON)" bash resource/venv/setup.sh
	@printf '%s' "$(CURDIR)" > $@
