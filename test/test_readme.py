"""README.md and docs/ are tried, not trusted: commands, the program, topics, files that are named, links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rclpy
import rclpy.context
from ros_client import NodeProcess

from mirage_ros.cli import build_parser
from mirage_ros.recording.topics import PICTURES, POINTS, STATUS, TOPICS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_lines() -> list[str]:
    code = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", README)
    return [line for line in code + inline if line]


def mirage_commands() -> list[str]:
    pattern = r"(?:\.venv/bin/|ros2 run mirage_ros )?mirage (\w.*)"
    found = (re.fullmatch(pattern, line) for line in shell_lines())
    return sorted({match[1] for match in found if match})


def test_the_readme_names_commands():
    assert {"demo", "node"} <= {command.split()[0] for command in mirage_commands()}


@pytest.mark.parametrize("command", mirage_commands())
def test_every_mirage_command_is_understood(command):
    arguments = shlex.split(command.replace("...", ""))
    parsed = build_parser().parse_args(arguments)
    for name in ("params", "config"):
        path = getattr(parsed, name, None)
        assert path is None or (ROOT / path).is_file()


def test_make_knows_every_target():
    targets = {match[1] for line in shell_lines() if (match := re.fullmatch(r"make (\w+)", line))}
    assert {"demo", "test"} <= targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_program_runs():
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 6 and lines[-1].endswith("(128, 160, 3)")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_index_has_every_page():
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", README))


def test_the_architecture_names_what_is_there():
    text = (ROOT / "docs/architecture.md").read_text()
    drawing = text.split("\n\n    ")[1].split("\n\n")[0]
    names = set(re.findall(r"`([\w/]+(?:\.py|/))`", text)) | set(re.findall(r"(\w+/)", drawing))
    assert len(names) > 30
    for name in names:
        assert any((ROOT / base / name).exists() for base in ("mirage_ros", "mirage_ros/ros", ".")), name


def published(document: str) -> dict[str, str]:
    """Topic -> type of the rows of a document's table that the node publishes."""
    topics = {}
    for names, kind in re.findall(r"^\| (`.+?) \| ([\w/]+) \|", document, re.MULTILINE):
        if "(in)" not in names and "/" in kind:
            package, _, name = kind.replace("/msg/", "/").partition("/")
            topics |= {topic: f"{package}/msg/{name}" for topic in re.findall(r"`([^`]+)`", names)}
    return topics


def test_the_documents_list_the_topics_of_the_table():
    table = {topic.name: topic.type_name for topic in TOPICS}
    section = (ROOT / "docs/ros.md").read_text().split("## Topics\n")[1].split("\n## ")[0]
    assert published(section) == table
    assert set(PICTURES) | {POINTS, STATUS} <= set(published(README))
    assert published(README).items() <= table.items()
    demanded = re.findall(r"^\| `(\S+)` \| \S+ \| on demand", section, re.MULTILINE)
    assert set(demanded) == {topic.name for topic in TOPICS if topic.on_demand}


@pytest.fixture
def probe(tmp_path):
    """A node that only looks, beside the running one."""
    process = NodeProcess(tmp_path, "--ros-args", "-p", "seed:=room")
    context = rclpy.context.Context()
    process.wait_for("New world")
    rclpy.init(context=context, domain_id=process.domain)
    yield rclpy.create_node("probe", context=context)
    rclpy.shutdown(context=context)
    process.close()


def test_the_node_publishes_the_topics_of_the_table(probe):
    wanted = {f"/{topic.name.lstrip('/')}": topic for topic in TOPICS if topic.name != "/clock"}
    deadline = time.monotonic() + 20
    while not all(map(probe.count_publishers, wanted)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for name, topic in wanted.items():
        offered = probe.get_publishers_info_by_topic(name)
        assert offered, f"{name} is not published"
        qos = topic.qos.resolved()
        assert offered[0].topic_type == topic.type_name
        assert offered[0].qos_profile.reliability.name.lower() == qos.reliability, name
        assert offered[0].qos_profile.durability.name.lower() == qos.durability, name
