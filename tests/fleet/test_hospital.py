"""One hospital from an empty machine through failed and good upgrades and back, as docs/fleet.md says, without network.

The tests are one story in the order of this file: each leaves the guest as the next one finds it.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fleet.bundles import Bundles
from tests.fleet.guest import ELSEWHERE, GUEST, MODALITY, OPERATOR, PACS, STRANGER, Guest, base_image, running_guest
from tests.fleet.hospital import Hospital, Store, blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.fleet]

FIRST, CRASHES, FORGED, MISREADS, SECOND = "0.1.0", "0.1.1", "0.1.2", "0.1.3", "0.2.0"
PROBE = """
import json, os, socket
def works(make):
    try:
        make()
    except OSError:
        return False
    return True
families = ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET")
kinds = {"AF_NETLINK": socket.SOCK_RAW, "AF_PACKET": socket.SOCK_RAW}
state = "/var/lib/insite/"
private = [state + name for name in ("ledger.db", "spool", "results", "keys")]
private += ["/var/log/journal", "/root", "/opt/insite/golden.dcm"]
print(json.dumps({
    "state": os.listdir(state),
    "readable": [path for path in private if works(lambda: os.listdir(path) if os.path.isdir(path) else open(path))],
    "sockets": [
        each for each in families
        if works(lambda: socket.socket(getattr(socket, each), kinds.get(each, socket.SOCK_STREAM)))
    ],
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line),
}))
"""
REACHES = f"""
import json, socket
def reaches(address):
    try:
        socket.create_connection((address, 104), 3).close()
    except OSError:
        return False
    return True
print(json.dumps({{address: reaches(address) for address in {[PACS, STRANGER, ELSEWHERE]}}}))
"""
STEPS_BACK = """
import json, os, pathlib
def works(make):
    try:
        make()
    except OSError:
        return False
    return True
killed = pathlib.Path("/proc/self/oom_score_adj")
print(json.dumps({
    "last": works(lambda: os.nice(19)) and os.getpriority(os.PRIO_PROCESS, 0) == 19,
    "first to be killed": works(lambda: killed.write_text("1000")) and killed.read_text().strip() == "1000",
    "altered": [name for name, make in {
        "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "scheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    }.items() if works(make)],
}))
"""
UNTOUCHED = "test ! -e /opt/insite/current && ! getent passwd insite-node && test ! -e /var/lib/insite"


@pytest.fixture(scope="module")
def bundles(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """The maker's workshop."""
    return Bundles(repository, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def guest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """An empty guest with loopback and the operator's link alone."""
    with running_guest(base_image(repository / "build" / "fleet"), tmp_path_factory.mktemp("guest")) as guest:
        yield guest


@pytest.fixture(scope="module")
def hospital(
    guest: Guest, bundles: Bundles, repository: Path, pydicom_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hospital]:
    """The operator's desk beside a PACS, with the first bundle on a stick."""
    page = blocks(repository / "docs" / "fleet.md", "operator")
    with Hospital(guest, tmp_path_factory.mktemp("desk"), page, bundles) as hospital:
        hospital.take(FIRST, pydicom_data / "RG1_UNCR.dcm")
        yield hospital


def test_a_playbook_that_its_maker_did_not_sign_is_not_run(hospital: Hospital, bundles: Bundles) -> None:
    """The page's first block ends at the playbook that was exchanged, before the operator runs it."""
    answer = hospital.take_out(bundles.with_other_playbook(FIRST))
    assert answer.returncode != 0
    assert b"ansible/install.yml: FAILED" in answer.stdout + answer.stderr
    assert hospital.take_out(bundles.of(FIRST)).returncode == 0


def test_the_capture_sees_what_an_open_guest_sends(guest: Guest) -> None:
    """The positive control: before the installation, a packet to somebody else's address is seen on the link."""
    guest.says(f"echo hello > /dev/udp/{ELSEWHERE}/9")
    assert _until(lambda: guest.sent(f"dst host {ELSEWHERE}"))


@pytest.mark.parametrize("damage", ["half", "altered"])
def test_a_damaged_bundle_is_refused(hospital: Hospital, bundles: Bundles, damage: str) -> None:
    """Half a bundle is noticed on the operator's desk, an altered one on the host before anything runs."""
    sentence = "Copy it again from its original."
    hospital.refused("install.yml", sentence, insite_bundle=str(bundles.damaged(FIRST, damage)))
    hospital.guest.says(UNTOUCHED)
    assert hospital.guest.says("ls /opt/insite/releases 2> /dev/null || true") == ""


def test_a_foreign_makers_bundle_is_refused(hospital: Hospital, bundles: Bundles) -> None:
    """A bundle that another key signed is not unpacked."""
    hospital.refused("install.yml", "was not signed with this key", insite_maker_key=str(bundles.foreign_key))
    hospital.guest.says(UNTOUCHED)


def test_a_taken_port_is_named(hospital: Hospital) -> None:
    """The play names port and program, and changes nothing."""
    listener = "import socket, time; taken = socket.create_server(('', 11112)); time.sleep(600)"
    hospital.guest.says(f'systemd-run --unit=squatter python3 -c "{listener}" && sleep 2')
    hospital.refused("install.yml", "Port 11112 is taken by", "python3")
    hospital.guest.says("systemctl stop squatter")
    hospital.guest.says(UNTOUCHED)


def test_a_small_disk_is_measured_first(hospital: Hospital) -> None:
    """A disk that could not hold the release is refused with both numbers."""
    hospital.guest.says("mount -t tmpfs -o size=100M none /opt")
    hospital.refused("install.yml", "Too little room: /opt has 100 MiB free")
    hospital.guest.says("umount /opt")
    hospital.guest.says(UNTOUCHED)


def test_a_wrong_clock_is_refused(hospital: Hospital) -> None:
    """A host whose clock is a year behind is refused; here `date` stands in for the clock, which a guest can't have."""
    hospital.guest.says(
        "printf '#!/bin/sh\\necho $(($(/bin/date +%%s) - 31536000))\\n' > /usr/local/bin/date"
        " && chmod +x /usr/local/bin/date"
    )
    hospital.refused("install.yml", "Set the clock")
    hospital.guest.says("rm /usr/local/bin/date")
    hospital.guest.says(UNTOUCHED)


def test_a_name_in_place_of_an_address_is_refused(hospital: Hospital) -> None:
    """The firewall lets no name service through, so a name is refused where it stands."""
    hospital.refused("install.yml", "'pacs.example' is no address", insite_senders=["pacs.example"])


def test_one_command_installs_and_answers_the_radiograph(hospital: Hospital, bundles: Bundles) -> None:
    """From an empty machine to a green doctor and an answered chest radiograph in one command."""
    assert bundles.of(FIRST).stat().st_size < 350e6
    started = time.monotonic()
    played = hospital.play("install.yml")
    seconds = time.monotonic() - started
    megabytes = bundles.of(FIRST).stat().st_size / 1e6
    sys.stdout.write(
        f"\nbundle {megabytes:.0f} MB; one command, installed, green and RG1 answered in {seconds:.0f} s\n"
    )
    assert "All is in order." in played.text
    assert "answered with SR and SEG" in hospital.guest.says("cat /opt/insite/last-switch")
    assert hospital.received() == set(), "a golden study's results left the machine"


def test_a_second_run_changes_nothing(hospital: Hospital) -> None:
    """Without a change of variables the play reports none."""
    assert hospital.play("install.yml").changed == 0


def test_check_mode_says_what_would_change_and_changes_nothing(hospital: Hospital) -> None:
    """With --check, a changed variable is reported and the settings in effect stay."""
    before = hospital.guest.says("cat /etc/insite/insite.toml")
    played = hospital.play("install.yml", "--check", insite_drain_seconds=5, study={"quiet_seconds": 3.0})
    assert played.changed > 0
    assert hospital.guest.says("cat /etc/insite/insite.toml; systemctl is-active insite-node") == f"{before}\nactive"


def test_an_unknown_setting_is_refused_before_the_switch(hospital: Hospital) -> None:
    """A key that the new version does not know is named, and what runs goes on with what it had."""
    before = hospital.guest.says("cat /etc/insite/insite.toml; systemctl show --property=MainPID insite-node")
    hospital.refused("install.yml", "Unknown setting node.colour", node={"colour": "red"})
    after = hospital.guest.says("cat /etc/insite/insite.toml; systemctl show --property=MainPID insite-node")
    assert after == before


def test_a_changed_setting_that_does_not_hold_goes_back_by_itself(hospital: Hospital) -> None:
    """A destination that does not answer fails the doctor; the settings of before are in effect again."""
    nobody = {"name": "pacs", "ae_title": "PACS", "host": PACS, "port": 105}
    hospital.refused("install.yml", "FAILED  destination pacs", "is in effect as before", destinations=[nobody])
    assert "port = 104" in hospital.guest.says("cat /etc/insite/insite.toml")
    hospital.play("install.yml")


def test_a_study_comes_back_to_the_pacs(hospital: Hospital) -> None:
    """A radiograph that a modality sends comes back as SR to the PACS."""
    with Store(hospital, "walk") as store:
        store.send()
    hospital.wait_until_delivered(store.acknowledged)


def test_the_inference_service_reads_no_patient_data_and_opens_no_network_socket(hospital: Hospital) -> None:
    """A program under exactly the inference unit sees of the state only run/, and can make Unix sockets alone."""
    assert hospital.guest.shell("cat > /opt/probe.py", PROBE.encode()).returncode == 0
    found = json.loads(hospital.guest.says(under_the_unit("inference")))
    assert found == {
        "state": ["run"],
        "readable": [],
        "sockets": ["AF_UNIX"],
        "interfaces": ["lo"],
    }


def test_a_builder_of_engines_may_step_back_and_alter_nothing_else(hospital: Hospital) -> None:
    """Under the inference unit a child may come last and be killed first; no other call that alters resources works.

    Without a unit all of them work, and under the worker's none that its filter names: it is the filter that refuses.
    """
    assert hospital.guest.shell("cat > /opt/probe.py", STEPS_BACK.encode()).returncode == 0
    free = json.loads(hospital.guest.says("python3 /opt/probe.py"))
    assert free == {"last": True, "first to be killed": True, "altered": ["affinity", "scheduler"]}
    inference = json.loads(hospital.guest.says(under_the_unit("inference")))
    assert inference == {"last": True, "first to be killed": True, "altered": []}
    worker = json.loads(hospital.guest.says(under_the_unit("worker")))
    assert (worker["last"], worker["altered"]) == (False, [])
    assert hospital.guest.says("systemctl show --property=OOMPolicy --value insite-inference") == "continue"


def test_the_inference_service_itself_is_confined(hospital: Hospital) -> None:
    """Not a copy: the process that serves has the filter, no right, none to come, and no network but loopback."""
    status = hospital.guest.says("cat /proc/$(systemctl show --property=MainPID --value insite-inference)/status")
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert [found[key].strip() for key in ("Seccomp", "NoNewPrivs")] == ["2", "1"]
    assert {int(found[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    network = "cat /proc/$(systemctl show --property=MainPID --value insite-inference)/net/dev"
    assert [line.split(":")[0].strip() for line in hospital.guest.says(network).splitlines() if ":" in line] == ["lo"]


def test_the_gpu_is_the_inference_services_with_its_drop_in_alone(hospital: Hospital) -> None:
    """A stand-in for a GPU's device node is hidden from the service, and shown to it by the gpu variant's drop-in."""
    assert (
        hospital.guest.shell("cat > /opt/probe.py", b"import os; print(os.path.exists('/dev/nvidia0'))").returncode == 0
    )
    says = hospital.guest.says
    assert says(under_the_unit("inference")) == "False"
    assert says(under_the_unit("inference", "/opt/insite/current/systemd/gpu.conf")) == "True"
    assert says(under_the_unit("worker")) == "False"


def test_only_senders_come_in(hospital: Hospital) -> None:
    """The DICOM port answers a configured sender and is silent to a stranger; the status site likewise."""
    assert hospital.connects(MODALITY, 11112)
    assert not hospital.connects(STRANGER, 11112)
    assert hospital.connects(MODALITY, 8080)
    assert not hospital.connects(STRANGER, 8080)
    assert not hospital.connects(STRANGER, 22)


def test_the_kernel_holds_each_service_to_its_own_peers(hospital: Hospital) -> None:
    """Without the firewall, too, a program under the worker's unit reaches the PACS and nobody else."""
    assert hospital.guest.shell("cat > /opt/probe.py", REACHES.encode()).returncode == 0
    hospital.guest.says("nft delete table inet insite")
    reached = json.loads(hospital.guest.says(under_the_unit("worker")))
    hospital.guest.says("systemctl restart nftables-insite")
    assert reached == {PACS: True, STRANGER: False, ELSEWHERE: False}


def test_nothing_goes_out_but_to_configured_peers(hospital: Hospital) -> None:
    """Root and the services' users try another address; neither those packets nor any other are on the link."""
    for user in ("root", "insite-worker", "insite-node", "insite-web"):
        attempt = f"setpriv --reuid={user} --clear-groups timeout 2 bash -c 'echo hello > /dev/udp/{ELSEWHERE}/9'"
        hospital.guest.shell(attempt)
        hospital.guest.shell(attempt.replace("udp", "tcp").replace("/9", "/80"))
    time.sleep(1)
    assert hospital.strays() == []


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (CRASHES, "does not run"),
        (FORGED, "FAILED  pack chest-xray"),
        (MISREADS, "gives 0.990 for the golden study"),
    ],
    ids=["crash", "forged", "misreads"],
)
def test_a_failed_upgrade_goes_back_by_itself(hospital: Hospital, version: str, reason: str) -> None:
    """A worker that does not come up, a pack with a bad signature, made-up scores: the old version is in effect again.

    A modality stores all the while: nothing that it was told is kept is lost, and no result is the failed version's.
    """
    hospital.take(version)
    with Store(hospital, version) as store:
        store.start()
        hospital.refused("upgrade.yml", reason, f"Version {FIRST} is in effect as before.")
        store.stop()
    assert hospital.guest.says("readlink /opt/insite/current") == f"/opt/insite/releases/{FIRST}"
    assert not set(store.acknowledged) - hospital.kept_images()
    hospital.wait_until_delivered(store.acknowledged)
    assert hospital.versions_that_spoke() == {FIRST}


def test_a_power_cut_in_a_change_is_undone_at_boot(hospital: Hospital) -> None:
    """With the services stopped for new settings and the power gone, the next boot has the settings of before."""
    hospital.take(FIRST)
    before = hospital.guest.says("cat /etc/insite/insite.toml")
    hospital.guest.says(
        f"""cd /opt/insite/releases/{FIRST} && sed -i 's/^quiet_seconds = .*/quiet_seconds = 9.0/' wanted/insite.toml
        systemd-run --quiet --unit=switch-insite sh $PWD/systemd/insite-switch to {FIRST}
        until grep -q 9.0 /etc/insite/insite.toml; do systemctl is-active --quiet switch-insite || exit 1; done
        systemctl kill --signal=KILL switch-insite"""
    )
    hospital.guest.reboot()
    assert _until(lambda: hospital.guest.shell("test ! -e /opt/insite/switching").returncode == 0)
    assert "was interrupted" in hospital.guest.says("cat /opt/insite/last-switch")
    assert hospital.guest.says("cat /etc/insite/insite.toml") == before
    assert "All is in order." in hospital.play("status.yml").text


def test_an_upgrade_loses_no_acknowledged_image(hospital: Hospital) -> None:
    """A modality goes on storing through the upgrade; every image that it was told is kept is known and answered."""
    hospital.take(SECOND)
    with Store(hospital, "upgrade") as store:
        store.start()
        hospital.play("upgrade.yml")
        store.stop()
    sys.stdout.write(f"\nupgrade: {len(store.acknowledged)} images acknowledged, {store.refused} refused meanwhile, ")
    lost = set(store.acknowledged) - hospital.kept_images()
    sys.stdout.write(f"{len(lost)} lost\n")
    assert len(store.acknowledged) > 20
    assert not lost
    hospital.wait_until_delivered(store.acknowledged)
    assert hospital.guest.says("readlink /opt/insite/current") == f"/opt/insite/releases/{SECOND}"
    assert hospital.versions_that_spoke() == {FIRST, SECOND}


def test_a_rollback_puts_the_version_before_into_effect(hospital: Hospital) -> None:
    """One command back, with the doctor green and the settings of that version."""
    hospital.play("rollback.yml")
    assert hospital.guest.says("readlink /opt/insite/current") == f"/opt/insite/releases/{FIRST}"
    assert "All is in order." in hospital.play("status.yml").text


def test_an_upgrade_by_hand_follows_the_page(hospital: Hospital, bundles: Bundles, repository: Path) -> None:
    """The blocks of the page's last section, run on the host, end on the bundle's version."""
    hospital.guest.says(
        "sh /opt/insite/releases/*/systemd/insite-switch 2> /dev/null; rm -rf /opt/insite/releases/0.2*"
    )
    for name, file in (("insite.tar", bundles.of(SECOND)), ("maker.pub.pem", bundles.keys.public)):
        assert hospital.guest.shell(f"cat > /root/{name}", file.read_bytes()).returncode == 0
    for block in blocks(repository / "docs" / "fleet.md", "host"):
        hospital.guest.says(block)
    assert hospital.guest.says("readlink /opt/insite/current") == f"/opt/insite/releases/{SECOND}"


def test_in_all_that_time_no_packet_left_for_a_stranger(hospital: Hospital) -> None:
    """From the installation to the end, restarts and a reboot included, the capture holds no stray packet."""
    answered = hospital.guest.sent(f"dst host {OPERATOR} and src host {GUEST}", hospital.installed_at)
    sys.stdout.write(f"\ncapture: {len(answered)} packets to the operator, {len(hospital.strays())} to strangers\n")
    assert answered
    assert hospital.strays() == []


def under_the_unit(service: str, drop_in: str = "") -> str:
    """A script that runs /opt/probe.py under a copy of a service's unit, drop-ins included, and prints what it says."""
    return f"""
set -e
cd /run/systemd/system
unit=/etc/systemd/system/insite-{service}.service
sed 's#^ExecStart=.*#ExecStart=/usr/bin/python3 /opt/probe.py#' $unit > insite-probe.service
rm -rf insite-probe.service.d && mkdir insite-probe.service.d
cp $unit.d/*.conf {drop_in} insite-probe.service.d 2> /dev/null || true
cat > insite-probe.service.d/30-probe.conf << 'END'
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
StandardOutput=file:/run/probe.json
END
systemctl daemon-reload
systemctl start insite-probe
cat /run/probe.json
rm -rf /run/probe.json insite-probe.service insite-probe.service.d
"""


def _until(found: Callable[[], object], seconds: float = 90.0) -> bool:
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
