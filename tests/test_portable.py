"""The settings that `make test-portable` covers, and that it tells a failure."""

import itertools

import portable
import pytest


def test_every_named_kernel_runs_with_one_and_two_threads():
    settings = portable.possible("flags : fpu avx2 avx512f avx512dq")
    cores = ("Haswell", "Prescott", "Zen", "SkylakeX")
    assert {(s.core, s.threads) for s in settings} == set(itertools.product(cores, (1, 2)))
    for threads in (1, 2):
        assert {s.aten for s in settings if s.threads == threads} == {"default", "avx2"}
    assert len({s.name for s in settings}) == len(settings)
    narrow = portable.possible("flags : fpu avx2")
    assert {s.core for s in narrow} == {"Haswell", "Prescott", "Zen"}
    assert {s.aten for s in narrow} == {"default", "avx2"}


@pytest.mark.parametrize(("code", "said"), [(0, "passed"), (3, "FAILED")])
def test_a_setting_reaches_the_process_and_its_failure_is_told(
    code, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(portable, "ROOT", tmp_path)
    monkeypatch.setattr(portable, "LOGS", tmp_path / "logs")
    program = (
        "import os\nprint('FAILED a::b', os.environ['OPENBLAS_CORETYPE'],"
        f" os.environ['OMP_NUM_THREADS'])\nraise SystemExit({code})"
    )
    setting = portable.Setting("Zen", 2, "avx2", "AVX2")
    assert portable.run(setting, "tests", ["-c", program]) is (code == 0)
    told = capsys.readouterr().out
    assert said in told and "zen-2" in told
    assert ("FAILED a::b Zen 2" in told) == (code != 0)


def test_one_failure_among_many_fails_all(monkeypatch):
    monkeypatch.setattr(portable, "run", lambda setting, target, words: setting.core != "Zen")
    jobs = [(setting, "tests") for setting in portable.SETTINGS]
    assert not portable.run_all(jobs)
    assert portable.run_all([job for job in jobs if job[0].core != "Zen"])


def test_an_unknown_setting_is_refused():
    with pytest.raises(SystemExit):
        portable.main(["--only", "pentium-9"])
