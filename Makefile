# make demo   a room from one picture, over real DDS: out/demo.mp4, demo.png, demo.mcap, report.json
# make studio a page to walk in a generated world, for your browser; no ROS
# make test   every test
# make prove  what takes longer: hundreds of kills, a thousand calls, ten thousand hostile messages, long streaming and driving (an hour)
# make setup  .venv with all that both need; they call it themselves
# make clean  remove .venv and out/
PYTHON ?= python3
READY := .venv/.ready
PROVE := .venv/bin/python -m pytest -q -s

.PHONY: help demo studio test prove setup clean
help:
	@sed -n 's/^# //p' Makefile

demo: $(READY)
	.venv/bin/mirage demo

studio: $(READY)
	.venv/bin/mirage studio

test: $(READY)
	@bash resource/venv/browser.sh
	.venv/bin/python -m pytest -q --timeout 300 --durations=10 -n 3 --dist loadfile --no-loadscope-reorder -m "not alone" test
	.venv/bin/python -m pytest -q --timeout 300 -m alone $$(grep -l mark.alone test/test_*.py)

prove: $(READY)
	MIRAGE_KILLS=20 MIRAGE_CALLS=1000 $(PROVE) -k "killed or answered" test/test_lifecycle.py
	MIRAGE_KILLS=200 $(PROVE) -k killed test/test_memory_files.py
	MIRAGE_KILLS=20 $(PROVE) -k killed test/test_cut_off.py
	MIRAGE_FUZZ=2026:0-9999 MIRAGE_FUZZ_NODE=mini $(PROVE) test/test_fuzz.py
	MIRAGE_SOAK_S=1800 $(PROVE) test/test_soak.py
	MIRAGE_WALK_S=600 $(PROVE) -k walking_on test/test_studio.py
	MIRAGE_DRIVE_S=600 MIRAGE_DRIVE_KEYS=30 $(PROVE) -k seen test/test_drive.py
	MIRAGE_ROBOTS_S=60 $(PROVE) test/test_robots.py

setup: $(READY)

clean:
	rm -rf .venv out

# An environment does not survive being moved, so one of another folder is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): constraints.txt requirements.txt requirements-ros.txt setup.py package.xml CMakeLists.txt $(wildcard msg/* srv/* action/*) \
          $(shell find resource/venv -type f -not -name '*.pyc')
	@PYTHON="$(PYTHON)" bash resource/venv/setup.sh
	@printf '%s' "$(CURDIR)" > $@
