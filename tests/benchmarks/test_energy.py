"""Sensors are found and read in a tree of real files like sysfs; joules are what watts and counters say."""

import time

import pytest

from perigee.benchmarks.energy import (
    Meter,
    Sensor,
    all_sensors,
    joules_between,
    link_j_per_mpx,
    per_mpx,
    system_sensors,
    usable,
)
from perigee.benchmarks.machine import describe, temperatures


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def ina3221(root, number, *rails):
    """A chip with rails (label, millivolts, milliamperes), and the sum of shunt voltages that real ones have as input 7."""
    chip = f"sys/class/hwmon/hwmon{number}/"
    files = {chip + "name": "ina3221", chip + "in7_label": "sum of shunt voltages", chip + "in7_input": "99"}
    for channel, (label, volts, current) in enumerate(rails, 1):
        files |= {chip + f"in{channel}_label": label, chip + f"in{channel}_input": volts}
        files |= {chip + f"curr{channel}_input": current}
    return write(root, files)


def rapl(root, zone, name, microjoules, top=262143328850):
    folder = f"sys/class/powercap/{zone}/"
    return write(root, {folder + "name": name, folder + "energy_uj": microjoules, folder + "max_energy_range_uj": top})


def test_of_an_orin_nx_the_total_is_one_rail_and_its_parts_are_not_added(tmp_path):
    ina3221(tmp_path, 3, ("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 800), ("VDD_SOC", 5000, 600))
    (sensor,) = system_sensors(tmp_path)
    assert sensor.name == "INA3221 VDD_IN" and sensor.read() == 10.0


def test_of_an_agx_orin_three_rails_of_two_chips_are_added(tmp_path):
    ina3221(tmp_path, 2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0))
    ina3221(tmp_path, 3, ("VDD_GPU_SOC", 20000, 300), ("VDD_CPU_CV", 20000, 100), ("VIN_SYS_5V0", 5000, 800))
    (sensor,) = system_sensors(tmp_path)
    assert sensor.name == "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert sensor.read() == pytest.approx(6 + 2 + 4)


def test_rails_of_an_unknown_module_stay_apart(tmp_path):
    ina3221(tmp_path, 1, ("VDD_GPU", 10000, 500), ("VDD_CPU_SOC_MSS", 10000, 200), ("VIN_SYS_5V0", 5000, 100))
    write(tmp_path, {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/in1_label": "VDD_IN"})
    sensors = list(system_sensors(tmp_path))
    assert [s.read() for s in sensors] == [5.0, 2.0, 0.5]
    assert all("total is not known" in s.covers for s in sensors)


def test_rapl_gives_packages_and_memory_but_no_parts(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    rapl(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    rapl(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    rapl(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    rapl(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    found = {s.name: (s.read(), s.covers) for s in system_sensors(tmp_path)}
    assert found == {
        "RAPL 0 package-0": (5.0, "processor without memory"),
        "RAPL 0:1 dram": (1.0, "memory"),
        "RAPL 1 psys": (9.0, "the platform, packages included"),
    }


def test_what_cannot_be_read_is_said_and_left_out(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 1)
    rapl(tmp_path, "intel-rapl:1", "package-1", "not a number")
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    good, remarks = usable(system_sensors(tmp_path))
    assert good == []
    assert "RAPL 0 package-0 is there but cannot be read (No such file or directory)" in remarks[0]
    assert "no number" in remarks[1]
    assert list(system_sensors(tmp_path / "nothing")) == []
    assert usable(all_sensors()) is not None  # of this machine, whatever it has


def test_watts_are_integrated_and_counters_may_start_again():
    watts = Sensor("w", "", lambda: 0.0)
    assert joules_between(watts, (10.0, 4.0), (12.0, 6.0)) == 10.0
    counter = Sensor("c", "", lambda: 0.0, counter=True, wraps_at_j=100.0)
    assert joules_between(counter, (0.0, 30.0), (1.0, 45.0)) == 15.0
    assert joules_between(counter, (0.0, 95.0), (1.0, 10.0)) == 15.0


def test_a_meter_sees_changes_wraps_and_gaps(tmp_path):
    ina3221(tmp_path, 0, ("VDD_IN", 5000, 2000))
    rapl(tmp_path, "intel-rapl:0", "package-0", 9_000_000, top=10_000_000)
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    current = tmp_path / "sys/class/hwmon/hwmon0/curr1_input"
    with Meter(list(system_sensors(tmp_path)), interval_s=0.005) as meter:
        time.sleep(0.05)
        counter.write_text("500000")  # up to 10 J and on from 0: 1.5 J
        current.unlink()
        time.sleep(0.05)
        current.write_text("2000")
        time.sleep(0.05)
    assert meter.joules["RAPL 0 package-0"] == pytest.approx(1.5)
    assert meter.watts(meter.sensors[0]) == pytest.approx(10)
    assert meter.samples > 4


def test_joules_per_megapixel_gross_and_net():
    sensor, silent = Sensor("s", "all of it", lambda: 0.0), Sensor("never read", "", lambda: 0.0)
    busy = Meter([sensor, silent], joules={"s": 310.0}, spans_s={"s": 31.0}, samples=100, seconds=30.0)
    idle = Meter([sensor, silent], joules={"s": 50.0}, spans_s={"s": 10.0}, samples=100, seconds=10.0)
    (row,) = per_mpx(busy, idle, 600.0)
    assert row["W"] == 10.0 and row["idle W"] == 5.0
    assert row["J/Mpx gross"] == 0.5 and row["J/Mpx net"] == 0.25
    assert row["covers"] == "all of it" and row["seconds"] == 30.0


def test_the_link():
    assert link_j_per_mpx(1e-7, 0.25) == 0.025


def test_a_jetson_describes_itself(tmp_path):
    write(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin NX\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\nmore",
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"
            "processor\t: 1\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            "proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB",
            "proc/sys/kernel/osrelease": "5.15.148-tegra",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil",
            "var/lib/nvpmodel/status": "pmode:0002",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": "48312",
            "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        },
    )
    assert describe(tmp_path) == {
        "board": "NVIDIA Jetson Orin NX",
        "jetson_linux": "# R36 (release), REVISION: 4.3",
        "cpu": "implementer 0x41, part 0xd42",
        "instruction_sets": ["asimd", "asimddp"],
        "cores": 2,
        "memory_gib": 15.6,
        "kernel": "5.15.148-tegra",
        "governor": "schedutil",
        "power_mode": "2 15W",
    }
    assert temperatures(tmp_path) == {"cpu-thermal": 48.312}
    assert describe(tmp_path / "nothing") == {} == temperatures(tmp_path / "nothing")
