"""The studio's page in a real browser: what a visitor does."""

from __future__ import annotations

import base64
import copy
import re

import browser
import cv2
import numpy as np
import pytest
import viser
from fakes import PixelModel
from PIL import Image
from studio_helpers import (  # noqa: F401, fixtures too
    SIZE,
    came_to_rest,
    chromium,
    seed,
    shown_psnr,
    shows,
    studio,
    tab,
    walk,
)

from mirage_ros.apps.studio import browsers
from mirage_ros.apps.studio.browsers import Visitor
from mirage_ros.apps.studio.gate import Gate
from mirage_ros.geometry.camera import Camera
from mirage_ros.world.world import World


def test_a_key_moves_the_view_to_what_the_world_shows_there(tab, studio, seed):
    page, _ = studio
    first = page.view
    shows(tab, first.frame.rgb)
    tab.hold("w", 400)
    view = tab.wait_for(lambda: page.view is not first and came_to_rest(tab, page))
    shows(tab, view.frame.rgb)
    assert shown_psnr(tab, first.frame.rgb) < 24
    ahead = first.frame.camera.camera_from_world @ np.append(view.frame.camera.position_world, 1)
    assert ahead[2] > 0.1 and abs(ahead[0]) < 0.02
    height = first.frame.camera.position_world[2]
    assert view.frame.camera.position_world[2] == pytest.approx(height, abs=1e-3)
    # The same poses in a world of its own give the same picture.
    world = World(PixelModel(SIZE))
    world.reset(seed.rgb, seed.camera, seed.depth_m)
    camera = view.frame.camera
    alone = world.step(Camera(camera.intrinsics, camera.world_from_camera[None], camera.size), np.array([10**9])).frames[0]
    assert shown_psnr(tab, alone.rgb) > 24
    tab.hold("ArrowLeft", 300)
    turned = tab.wait_for(lambda: page.view is not view and came_to_rest(tab, page)).frame.camera
    assert np.linalg.norm(turned.position_world - camera.position_world) < 0.1  # nearly in place
    assert turned.world_from_camera[:3, 2] @ camera.world_from_camera[:3, 2] < np.cos(np.radians(3))


def test_a_slow_browser_does_not_walk_back_to_where_it_was(monkeypatch):
    """It says where its camera was, long after that was placed elsewhere."""
    now, poses = [100.0], [np.eye(4) + 0.3 * np.eye(4, k=3) * step for step in range(4)]
    old, placed, again, walked = poses
    monkeypatch.setattr(browsers, "pose_of", lambda camera: camera)
    monkeypatch.setattr(browsers.time, "monotonic", lambda: now[0])
    client = object.__new__(viser.ClientHandle)
    client.camera = old
    visitor = Visitor(client)
    visitor.expect(old)
    assert visitor.hears(old), "nothing was moved"
    visitor.expect(placed)
    client.camera = placed  # as the server has it until the browser says otherwise
    visitor.expect(again)
    assert not any(map(visitor.hears, poses[:2]))
    now[0] += 60.0
    assert not visitor.hears(old) and visitor.hears(walked), "somebody walked meanwhile"
    assert visitor.hears(old), "and back"
    visitor.expect(again)
    assert visitor.hears(again) and visitor.hears(old), "it came at once"


def test_a_picture_or_browser_that_cannot_be_painted_ends_no_painting(tab, studio, seed):
    page, _ = studio
    here = page._visitors
    broken = copy.copy(next(iter(here.values())))
    broken.client = None
    page._visitors = {-1: broken, **here}
    page.glimpsed(np.zeros((0, 0, 3), np.uint8), page.view.frame.camera)
    tab.wait_for(lambda: page._due is None)
    shown = page.view.frame.rgb[:, ::-1].copy()
    page.glimpsed(shown, page.view.frame.camera)
    shows(tab, shown)
    page._visitors = here


def test_the_wheel_walks(tab, studio):
    page, _ = studio
    first = page.view.frame.camera
    tab.page.mouse.move(300, 300)
    tab.page.mouse.wheel(0, -100)
    view = tab.wait_for(lambda: page.view.frame.camera is not first and came_to_rest(tab, page))
    assert (first.camera_from_world @ np.append(view.frame.camera.position_world, 1))[2] > 0.03


def test_a_moment_kept_and_gone_back_to_in_the_page(tab, studio):
    page, _ = studio
    first = page.view.frame.rgb
    tab.open("Make")
    tab.press("Keep this moment")
    tab.says("Kept as moment 1.")
    tab.page.mouse.click(300, 300)
    tab.hold("w", 300)
    view = tab.wait_for(lambda: page.view.frame.rgb is not first and came_to_rest(tab, page))
    assert not np.array_equal(view.frame.rgb, first)
    tab.press("Go back to it")
    tab.says("Back at moment 1.")
    shows(tab, first)
    assert np.array_equal(came_to_rest(tab, page).frame.rgb, first)
    tab.press("Dream again")
    tab.says("dreaming with world seed 1")
    assert page.walk.world.config.seed == 1


def upload(tab, path):
    tab.open("Make")
    tab.page.locator("input[type=file]").first.set_input_files(str(path))


def test_a_photograph_becomes_a_world(tab, studio, tmp_path):
    page, _ = studio
    first = page.view
    file = tmp_path / "my street!.jpg"
    picture = cv2.resize(np.random.default_rng(3).integers(0, 255, (6, 8, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    Image.fromarray(picture).save(file, exif=exif)
    upload(tab, file)
    tab.says("A world around my street")
    view = came_to_rest(tab, page)
    assert view.world == first.world + 1
    cropped = np.degrees(2 * np.arctan(600 / 640 * np.tan(np.radians(65.5) / 2)))  # to the model's 5:4
    assert view.frame.camera.hfov_deg == pytest.approx(cropped, abs=0.2)
    shows(tab, view.frame.rgb)
    assert [path.name for path in page.folder.glob("photographs/*")] == ["my street.png"]
    tab.says("my street")  # in the gallery


DROP = """(files) => {
    const data = new DataTransfer();
    for (const [name, text] of files)
        data.items.add(new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], name, {type: "image/png"}));
    document.querySelector("canvas").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def field(tab, label):
    """The input beside some words."""
    return tab.page.locator(f"xpath=//*[normalize-space(text())='{label}']/following::input[1]")


def test_a_photograph_and_its_depth_become_a_world(tab, studio, seed, tmp_path):
    page, _ = studio
    color, depth, early, strip, grey = (tmp_path / f"{name}.png" for name in ("desk", "depth", "early", "strip", "grey"))
    Image.fromarray(seed.rgb).resize((300, 240)).save(color)
    millimetres = np.rint(seed.depth_m * 1000).astype(np.uint16)
    for path in (depth, early):
        cv2.imwrite(str(path), millimetres)
    cv2.imwrite(str(strip), millimetres[:20])
    cv2.imwrite(str(grey), (millimetres // 16).astype(np.uint8))

    def upload_depth(path):
        tab.page.locator("input[type=file]").nth(1).set_input_files(str(path))

    tab.open("Make")
    upload_depth(early)
    tab.says("is no photograph of yours")
    upload(tab, color)
    tab.says("A world around desk")
    guessed = tab.wait_for(lambda: page.view.world == 2 and page.view)
    upload_depth(depth)
    tab.says("Its depth goes from")
    view = tab.wait_for(lambda: page.view.world == 3 and page.view)
    assert np.nanmedian(np.abs(view.frame.depth_m / seed.depth_m - 1)) < 0.01
    assert np.nanmedian(np.abs(guessed.frame.depth_m / seed.depth_m - 1)) > 0.1
    tab.says("desk + depth")
    for path, words in ((strip, "strip.png is 120x20 and desk 300x240, which cannot show the same"), (grey, "grey.png has 8 bits a pixel")):
        upload_depth(path)
        tab.says(words)
    assert page.view is view
    tab.press("Begin here")  # again, with its depth
    again = tab.wait_for(lambda: page.view.world == 4 and page.view)
    assert np.array_equal(again.frame.depth_m, view.frame.depth_m)
    # Another lens and another unit: the same pixels seen by half the focal length lie twice as far aside, and half as far.
    focal = again.frame.camera.intrinsics[0, 0] * 300 / again.frame.camera.size[1]
    tab.page.get_by_text("Lens and depth").click()
    field(tab, "Lens").fill("1 2 3")
    field(tab, "Depth units").fill("2000")
    tab.press("Begin here")
    tab.says("give fx fy cx cy in pixels of desk, which is 300x240")
    field(tab, "Lens").fill(f"{focal / 2} {focal / 2} 149.5 119.5")
    tab.press("Begin here")
    halved = tab.wait_for(lambda: page.view.world == 5 and page.view)
    assert halved.frame.camera.intrinsics[0, 0] == pytest.approx(again.frame.camera.intrinsics[0, 0] / 2, rel=0.02)
    assert np.nanmedian(np.abs(2 * halved.frame.depth_m / again.frame.depth_m - 1)) < 0.03
    field(tab, "Lens").fill("")
    field(tab, "Depth units").fill("1000")
    # Dropped together, the depth first and the smaller one: it waits for its photograph.
    files = [[name, base64.b64encode(path.read_bytes()).decode()] for name, path in (("d.png", depth), ("pair.png", color))]
    tab.page.evaluate(DROP, files)
    dropped = tab.wait_for(lambda: page.view.world == 7 and page.view)
    assert np.array_equal(dropped.frame.depth_m, view.frame.depth_m)
    tab.says("pair + depth")


def test_what_is_no_photograph_is_refused_in_the_page(tab, studio, tmp_path):
    page, _ = studio
    first = page.view
    words, large = tmp_path / "words.jpg", tmp_path / "large.jpg"
    words.write_text("only words")
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    upload(tab, words)
    tab.says("words.jpg is no picture that can be read here; give a JPEG, PNG or WebP.")
    tab.page.locator("input[type=file]").first.set_input_files(str(large))
    tab.says("large.jpg has 200 MiB; give a picture of at most 32 MiB.", 60)
    assert page.make.uploads.held_bytes == 0 and page.view is first
    upload(tab, words)  # the button works still
    assert not list(page.folder.glob("photographs/*"))


def test_a_world_is_saved_and_loaded_in_the_page(tab, studio):
    page, _ = studio
    tab.hold("w", 200)
    before = came_to_rest(tab, page)
    tab.open("Make")
    tab.page.get_by_text("Saved worlds").click()
    tab.press("Save")
    tab.says("Saved as")
    assert (page.folder / "worlds" / "my world" / "world.json").is_file()
    tab.press("Begin here")
    tab.wait_for(lambda: page.view.world == 2 and came_to_rest(tab, page))
    tab.press("Load")
    tab.says("Loaded")
    view = tab.wait_for(lambda: page.view.world == 3 and came_to_rest(tab, page))
    assert np.allclose(view.frame.camera.world_from_camera, before.frame.camera.world_from_camera)
    assert view.state.memory.tokens >= before.state.memory.tokens


def test_two_browsers_see_one_world_and_one_drives(chromium, tab, studio):
    page, gate = studio
    other = browser.Tab(chromium, gate.url)
    other.says("You look on, somebody else drives.")
    tab.says("1 other browser here.")
    tab.hold("w", 250)
    view = came_to_rest(tab, page)
    shows(other, view.frame.rgb)
    other.hold("s", 250)
    other.page.wait_for_timeout(500)
    assert page.view is view  # who looks on moves nothing
    other.press("Drive from this browser")
    other.says("You drive.")
    tab.says("You look on, somebody else drives.")
    other.hold("s", 250)
    moved_on = other.wait_for(lambda: page.view is not view and came_to_rest(other, page))
    shows(tab, moved_on.frame.rgb)
    assert other.errors == []
    other.close()
    tab.says("You drive.")


def test_a_box_is_erased_in_the_page(tab, studio):
    page, _ = studio
    tab.open("Make")
    tab.page.get_by_text("Erase a box").click()
    tab.page.get_by_label("Show the box").click()
    tab.wait_for(lambda: page.make._box is not None)
    tab.press("Erase what is inside")
    tab.says("tokens erased.")
    assert int(re.search(r"(\d+) tokens erased", tab.page.content())[1]) > 0


def at(tab, camera, place):
    """Where a place is on the page, in a view that shows what a camera sees."""
    (left, top, width, height), (pixel,) = tab.boxes("canvas")[0], camera.project(place[None])[0]
    scale = min(width / camera.size[1], height / camera.size[0])
    return left + width / 2 + scale * (pixel[0] + 0.5 - camera.size[1] / 2), top + height / 2 + scale * (pixel[1] + 0.5 - camera.size[0] / 2)


def test_an_entity_is_spawned_dragged_and_deleted_in_the_page(chromium, tab, studio):
    page, gate = studio
    first = page.view
    tab.open("Make")
    tab.page.get_by_text("Entities", exact=True).click()
    tab.choose("Model", "box")
    tab.press("Spawn ahead")
    tab.says("Spawned box")
    view = page.view
    shows(tab, view.frame.rgb)
    other = browser.Tab(chromium, gate.url)
    other.says("You look on")
    shows(other, view.frame.rgb)
    (body,) = view.state.entities
    assert (view.frame.labels == body.state.number).sum() > 50
    tab.page.wait_for_timeout(1000)  # the gizmo is drawn
    middle = body.state.pose[:3, 3]
    start = at(tab, view.frame.camera, middle + 0.8 * 0.4 * body.state.pose[:3, 1])
    end = at(tab, view.frame.camera, middle + (0.8 * 0.4 - 0.5) * body.state.pose[:3, 1])
    tab.page.mouse.move(*start)
    tab.page.mouse.down()
    for share in np.linspace(0, 1, 6):
        tab.page.mouse.move(*(share * np.array(end) + (1 - share) * np.array(start)))
        tab.page.wait_for_timeout(60)
    tab.page.mouse.up()
    dragged = came_to_rest(tab, page)
    way = body.state.pose[:3, :3].T @ (next(iter(dragged.state.entities)).state.pose[:3, 3] - middle)
    assert way == pytest.approx([0, -0.5, 0], abs=0.12)
    assert np.array_equal(dragged.frame.camera.world_from_camera, first.frame.camera.world_from_camera)  # nobody walked
    shows(other, dragged.frame.rgb)
    other.open("Make")
    other.page.get_by_text("Entities", exact=True).click()
    other.press("Delete")
    other.says("Somebody else drives")
    assert len(page.view.state.entities) == 1
    assert page.bodies._gizmo[0] == page.driver == min(page._visitors)
    other.open("Walk")
    other.press("Drive from this browser")
    other.says("You drive.")
    assert page.bodies._gizmo[0] == page.driver == max(page._visitors)
    assert other.errors == []
    other.close()  # and the gizmo comes back with the wheel
    tab.says("You drive.")
    tab.wait_for(lambda: page.bodies._gizmo[0] == page.driver == min(page._visitors))
    tab.press("Delete")
    tab.says("Deleted box.")
    assert not len(page.view.state.entities)
    shows(tab, first.frame.rgb)


def test_a_path_is_drawn_by_clicks_played_saved_and_loaded(tab, studio):
    page, _ = studio
    tab.page.get_by_text("Path", exact=True).click()
    tab.page.get_by_label("Draw by clicking").click()
    tab.wait_for(lambda: tab.page.get_by_text("Memory in 3D").count() or None, 10)
    tab.page.wait_for_timeout(2500)
    left, top, width, height = tab.boxes("canvas")[0]
    for count, (x, y) in enumerate(((0.5, 0.6), (0.4, 0.55)), 2):
        tab.page.mouse.click(left + x * width, top + y * height)
        tab.says(f"{count} keyframes.")
    keyframes = page.paths.keyframes
    assert np.allclose(keyframes[0], page.view.frame.camera.world_from_camera)
    heights = [pose[2, 3] for pose in keyframes]
    assert np.allclose(heights, heights[0]) and np.linalg.norm(keyframes[1][:2, 3] - keyframes[0][:2, 3]) > 0.3
    tab.page.get_by_text("Save", exact=True).click()
    tab.says("Saved as")
    tab.page.get_by_text("Clear", exact=True).click()
    tab.says("No keyframes.")
    tab.page.get_by_text("Load", exact=True).click()
    tab.says("3 keyframes.")
    assert np.allclose(page.paths.keyframes, keyframes)
    tab.press("Play")
    tab.says("Walked", 60)
    assert np.allclose(page.view.frame.camera.world_from_camera, keyframes[-1])


def test_a_token_opens_the_page(chromium, studio):
    page, _ = studio
    gate = Gate("127.0.0.1", 0, page.address, "a-token")
    refused = browser.Tab(chromium, f"http://127.0.0.1:{gate.port}/")
    assert refused.response.status == 403
    refused.says("needs its token")
    refused.close()
    accepted = browser.Tab(chromium, gate.url)
    accepted.says("You drive.")
    assert "token" not in accepted.page.url and accepted.errors == []
    accepted.close()
    gate.close()


def test_a_phone_shows_the_whole_picture_above_the_panel(chromium, studio):
    page, gate = studio
    tab = browser.Tab(chromium, gate.url, (390, 844), is_mobile=True, has_touch=True)
    tab.says("You drive.")
    view = tab.wait_for(lambda: page.view)
    shows(tab, view.frame.rgb)
    panel = "div[style*='position: fixed'][style*='bottom: 0']"
    for expanded in (True, False):
        sides = tab.wait_for(lambda: tab.boxes("canvas", panel) if tab.settled("canvas", panel) else None)
        (_, top, width, height), (left, above, wide, _) = sides
        assert (left, wide, width) == (0, 390, 390) and top == 0 and height == pytest.approx(above, abs=1)
        assert height >= 390 * SIZE[0] / SIZE[1]  # all of the picture has room
        if expanded:
            tab.page.get_by_text("mirage studio").click()  # folds the panel
            tab.wait_for(lambda: tab.boxes("canvas", panel)[0][3] > 700)
    key = tab.page.get_by_role("button", name="Walk ahead")
    key.dispatch_event("pointerdown")
    tab.page.wait_for_timeout(300)
    key.dispatch_event("pointerup")
    ahead = tab.wait_for(lambda: page.view is not view and came_to_rest(tab, page)).frame.camera
    assert (view.frame.camera.camera_from_world @ np.append(ahead.position_world, 1))[2] > 0.03
    assert tab.errors == []
    tab.close()
