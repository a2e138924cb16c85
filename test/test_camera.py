"""Laws of the camera."""

import numpy as np
import pytest
from analytic import look

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera


def random_camera(rng, batch, size=(48, 64)):
    poses = [look(rng.normal(size=3), rng.normal(size=3) + 5) for _ in range(int(np.prod(batch)))]
    intrinsics = np.zeros((*batch, 3, 3))
    intrinsics[..., 0, 0] = rng.uniform(30, 200, batch)
    intrinsics[..., 1, 1] = rng.uniform(30, 200, batch)
    intrinsics[..., :2, 2] = rng.uniform(10, 50, (*batch, 2))
    intrinsics[..., 2, 2] = 1
    return Camera(intrinsics, np.reshape(poses, (*batch, 4, 4)), size)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_projecting_what_was_unprojected_gives_the_same_pixels(batch):
    rng = np.random.default_rng(0)
    camera = random_camera(rng, batch)
    pixels, depth = rng.uniform(-20, 80, (*batch, 50, 2)), rng.uniform(0.1, 50, (*batch, 50))
    again, depth_again = camera.project(camera.unproject(pixels, depth))
    np.testing.assert_allclose(again, pixels, atol=1e-8)
    np.testing.assert_allclose(depth_again, depth, rtol=1e-10)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_lifting_a_depth_picture_projects_back_to_its_pixels(batch):
    rng = np.random.default_rng(1)
    camera = random_camera(rng, batch)
    depth = rng.uniform(0.5, 9, (*batch, *camera.size))
    pixels, z = camera.project(camera.lift(depth).reshape(*batch, -1, 3))
    wanted = np.broadcast_to(camera.pixels().reshape(-1, 2), pixels.shape)
    np.testing.assert_allclose(pixels, wanted, atol=1e-8)
    np.testing.assert_allclose(z, depth.reshape(z.shape))


def test_the_inverse_map_undoes_the_pose():
    camera = random_camera(np.random.default_rng(2), (4,))
    product = camera.camera_from_world @ camera.world_from_camera
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(4), (4, 4, 4)), atol=1e-12)


@pytest.mark.parametrize("size", [(6, 8), (96, 128), (30, 200)])
def test_resizing_keeps_the_rays_through_the_edges_of_the_picture(size):
    camera = random_camera(np.random.default_rng(3), ())
    edges = np.array([[-0.5, -0.5], [camera.size[1] - 0.5, camera.size[0] - 0.5]])
    resized_edges = np.array([[-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]])
    one = np.ones(2)
    np.testing.assert_allclose(
        camera.resized(size).unproject(resized_edges, one), camera.unproject(edges, one), atol=1e-9
    )


def test_a_crop_sees_the_same_points_at_shifted_pixels():
    camera = random_camera(np.random.default_rng(4), ())
    points = camera.unproject(np.array([[20.0, 30.0]]), np.array([2.0]))
    pixels, _ = camera.cropped(7, 5, (20, 30)).project(points)
    np.testing.assert_allclose(pixels, [[15.0, 23.0]])


def test_a_field_of_view_gives_the_angle_between_the_outer_edges():
    camera = Camera.from_hfov(90.0, (48, 64))
    edge = camera.unproject(np.array([[63.5, 23.5]]), np.ones(1))[0]
    np.testing.assert_allclose(edge, [1, 0, 1], atol=1e-12)
    assert camera.hfov_deg == pytest.approx(90)


def test_cameras_stack_and_come_apart():
    rng = np.random.default_rng(5)
    single = [random_camera(rng, ()) for _ in range(3)]
    for one, other in zip(Camera.stack(single), single, strict=True):
        np.testing.assert_array_equal(one.world_from_camera, other.world_from_camera)
        np.testing.assert_array_equal(one.intrinsics, other.intrinsics)
    with pytest.raises(MirageError, match="one size"):
        Camera.stack([single[0], single[1].resized((10, 10))])


def pose_with(row, column, value):
    pose = np.eye(4)
    pose[row, column] = value
    return pose


@pytest.mark.parametrize(
    ("pose", "focal", "size", "message"),
    [
        (pose_with(0, 3, np.nan), 10, (4, 4), "NaN"),
        (pose_with(0, 0, 1.1), 10, (4, 4), "orthonormal"),
        (np.eye(4), 0, (4, 4), "focal"),
        (np.eye(4), np.nan, (4, 4), "focal"),
        (np.eye(4), 1e-9, (4, 4), "no lens"),
        (np.eye(4), 1e30, (4, 4), "no lens"),
        (pose_with(2, 3, -1e39), 10, (4, 4), "up to 10,000,000 m"),
        (np.eye(4), 10, (0, 4), "size"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(pose, focal, size, message):
    intrinsics = np.diag([focal, focal, 1.0])
    with pytest.raises(MirageError, match=message):
        Camera(intrinsics, pose, size)
