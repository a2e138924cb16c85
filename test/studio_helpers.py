"""What the studio's tests share: a walk that is listened to, and a page in a real browser."""

from __future__ import annotations

import threading

import browser
import cv2
import numpy as np
import pytest
from fakes import PixelModel

pytest.importorskip("viser", reason="needs the package viser: pip install 'mirage_ros[studio]'")

from mirage_ros.apps.studio.gate import Gate
from mirage_ros.apps.studio.page import Page
from mirage_ros.apps.studio.walk import Walk
from mirage_ros.data.seeds import load_seed
from mirage_ros.world.world import World

SIZE = (96, 120)


class Notes:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.views, self.jumped, self.glimpses, self.sentences, self.shares = [], [], [], [], []
        self.heard = threading.Condition()

    def saw(self, view, jumped):
        self.jumped.append(jumped)
        self._note(self.views, view)

    def glimpsed(self, rgb, camera):
        self._note(self.glimpses, (rgb, camera))

    def notify(self, sentence, good):
        self._note(self.sentences, (good, sentence))

    def working(self, what, share):
        self._note(self.shares, (what, share))

    def _note(self, where, what):
        with self.heard:
            where.append(what)
            self.heard.notify_all()

    def wait(self, true):
        with self.heard:
            assert self.heard.wait_for(true, 30), (self.sentences, len(self.views))


@pytest.fixture(scope="module")
def seed(folder):
    return load_seed(folder)


@pytest.fixture
def walk(seed):
    notes = Notes()
    one = Walk(World(PixelModel(SIZE)), notes)
    one.ask("begin", lambda: one.begin(seed))
    notes.wait(lambda: notes.views and notes.sentences)
    yield one, notes
    one.close()


def moved(pose, ahead_m=0.0, right_m=0.0):
    pose = pose.copy()
    pose[:3, 3] += ahead_m * pose[:3, 2] + right_m * pose[:3, 0]
    return pose


def did(walk, notes, job):
    """Asks for a job and returns what was told of it."""
    count = len(notes.sentences)
    walk.ask("a job", job)
    notes.wait(lambda: len(notes.sentences) > count)
    return notes.sentences[-1]


@pytest.fixture(scope="module")
def chromium():
    with browser.launched() as one:
        yield one


@pytest.fixture
def studio(seed, tmp_path):
    """A page with a model that needs no weights, and its gate."""
    page = Page(World(PixelModel(SIZE)), tmp_path / "studio")
    page.make.begin(seed)
    gate = Gate("127.0.0.1", 0, page.address, None)
    yield page, gate
    gate.close()
    page.close()


@pytest.fixture
def tab(chromium, studio):
    one = browser.Tab(chromium, studio[1].url)
    one.says("You drive.")
    one.wait_for(lambda: studio[0].view)
    yield one
    assert one.errors == []
    one.close()


def shown_psnr(tab, rgb):
    """How near the view is to a picture, dB."""
    canvas = tab.canvas()
    height, width = canvas.shape[:2]
    scale = min(height / rgb.shape[0], width / rgb.shape[1])
    tall, wide = round(rgb.shape[0] * scale), round(rgb.shape[1] * scale)
    top, left = (height - tall) // 2, (width - wide) // 2
    small = cv2.resize(canvas[top : top + tall, left : left + wide], rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
    return 10 * np.log10(255**2 / np.mean((small.astype(float) - rgb) ** 2))


def shows(tab, rgb, seconds=20.0):
    """Waits until the view shows a picture."""
    return tab.wait_for(lambda: shown_psnr(tab, rgb) > 24, seconds)


def came_to_rest(tab, page):
    """The view after the last pose that the browser told has been shown."""

    def rested():
        view = page.view
        tab.page.wait_for_timeout(600)
        return page.view is view and view

    return tab.wait_for(rested)
