"""What a figure shows is what the records say. Runs where Python imports matplotlib: python3 scripts/figures/figures_test.py"""
import contextlib
import gzip
import io
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import bars  # noqa: E402
import curves  # noqa: E402
import lines  # noqa: E402
import style  # noqa: E402
import synthetic_run as made  # noqa: E402
from plot import main  # noqa: E402
from panels import figures_of_mixes, figures_over_length  # noqa: E402
from records import read_run  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


def called(*arguments) -> tuple:
    """Exit code, standard output, standard error of scripts/plot."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


class FiguresTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(style.pyplot.close, "all")
        self.folder = pathlib.Path(folder.name)

    def run_of(self, lines_of_run):
        return read_run(made.write(self.folder / "run", lines_of_run))

    def figure(self, lines_of_run, direction="forward", regime="", make=figures_over_length):
        run = self.run_of(lines_of_run)
        found = [figure for figure in make(run, regime) if figure.direction == direction]
        self.assertEqual(len(found), 1)
        return found[0], run

    def panel_axes(self, drawing, title):
        found = [axis for axis in drawing.axes if axis.get_title().replace("\n", " ") == title]
        self.assertEqual(len(found), 1, [axis.get_title() for axis in drawing.axes])
        return found[0]

    def heights(self, axis) -> dict:
        """(length, backend) -> height of its bar, by where the bar stands."""
        ticks = list(zip(axis.get_xticks(), [int(label.get_text()) for label in axis.get_xticklabels()]))
        found = {}
        for container in axis.containers:
            for bar in container:
                tick = min(ticks, key=lambda t: abs(t[0] - (bar.get_x() + bar.get_width() / 2)))[1]
                found[tick, container.get_label()] = bar.get_height()
        return found

    def texts(self, axis) -> list:
        return [text.get_text() for text in axis.texts]

    def test_a_training_is_drawn_with_its_band(self):
        case = "training b=4 d=64 s=64 steps=3"
        band = {"low": {"loss": [5.0, 4.0, 3.0], "wk": [0.9, 0.9, 0.9]}, "high": {"loss": [6.0, 4.4, 3.4], "wk": [1.1, 1.1, 1.1]}}
        made_of = {"flash_varlen": [1.0, 1.05, 1.2], "eager": [1.0, 0.99, 1.0]}
        run = self.run_of([made.header()] + [
            made.result(name, case, "backward", training={"measured": {"loss": [5.5, 4.2, 3.2], "wk": norms}, **band})
            for name, norms in made_of.items()])
        ((device, drawn_case), results), = curves.cases_of(run).items()
        self.assertEqual((drawn_case, len(results)), (case, 2))
        drawing = curves.draw(device, drawn_case, results, run.ours)
        axis = self.panel_axes(drawing, "gradient norm, wk")
        for line, norms in zip(axis.lines, made_of.values()):
            self.assertEqual([round(y, 9) for y in line.get_ydata()], [round(100 * (norm - 1), 9) for norm in norms])
        edges = axis.collections[0].get_paths()[0].vertices[:, 1]
        self.assertAlmostEqual(min(edges), -10)
        self.assertAlmostEqual(max(edges), 10)
        self.assertEqual(axis.get_ylabel(), "off the mean, %")
        for panel in drawing.axes:
            self.assertTrue(all(float(tick).is_integer() for tick in panel.get_xticks()), panel.get_xticks())
        code, out, _ = called(self.folder / "run", "--out", self.folder / "figures")
        self.assertEqual(code, 0)
        self.assertIn("curves-cuda-b4-d64-s64-steps3.png", out)

    def check_bars(self, lines_of_run, direction, regime, expected_regime):
        """Every bar is as high as its record says; returns how many there were."""
        figure, run = self.figure(lines_of_run, direction, regime)
        drawing = bars.draw(figure, run.ours, "sequence length")
        self.assertIn("NVIDIA H200", drawing.get_suptitle())
        self.assertIn(f"regime {expected_regime},", drawing.get_suptitle())
        count = 0
        for d, heads in ((64, 32), (128, 16)):
            for mask, mask_text in (("none", "full"), ("causal", "causal")):
                axis = self.panel_axes(drawing, f"head dim {d}, {heads} heads, {mask_text}")
                heights = self.heights(axis)
                for length in made.LENGTHS:
                    for backend in made.BACKENDS:
                        if (backend, length) in (made.OOM, made.FAILED):
                            self.assertNotIn((length, backend), heights)
                            continue
                        value = made.tflops_of(backend, length, d, mask, direction, expected_regime)
                        self.assertAlmostEqual(heights[length, backend], value)
                        self.assertIn(style.value_text(value), self.texts(axis))
                        count += 1
                self.assertEqual(self.texts(axis).count("OOM"), 1)
                self.assertEqual(self.texts(axis).count("failed"), 1)
                self.assertEqual(len(self.texts(axis)), len(heights) + 2)
        return count

    def test_bars_are_as_high_as_the_records_say(self):
        for direction in ("forward", "backward"):
            self.assertEqual(self.check_bars(made.records(), direction, "", "sustained"), 4 * (6 * 9 - 2))

    def test_another_regime_is_drawn_when_it_is_asked_for(self):
        self.check_bars(made.records(), "forward", "cooled", "cooled")

    def test_a_number_of_the_wrong_regime_is_caught(self):
        planted = made.records()
        for record in planted:
            if record.get("backend") == "eager" and record.get("other_regimes"):
                record["time"] = {**record["other_regimes"][0], "regime": "sustained"}
        with self.assertRaises(AssertionError):
            self.check_bars(planted, "forward", "", "sustained")

    def test_regimes_do_not_meet_in_one_figure(self):
        mixed = made.records()
        for record in mixed:
            if record.get("backend") == "eager" and record.get("other_regimes"):
                record["time"] = record.pop("other_regimes")[0]
        drawn = figures_over_length(self.run_of(mixed), "")
        self.assertEqual({figure.regime for figure in drawn}, {"sustained", "cooled"})
        for figure in drawn:
            speeds = figure.panels[0].speeds  # head dim 64, full
            self.assertEqual((512, "eager") in speeds, figure.regime == "cooled", figure.name())
            for (length, backend), speed in speeds.items():
                self.assertAlmostEqual(speed.tflops, made.tflops_of(backend, length, 64, "none", figure.direction, figure.regime))

    def test_a_failed_record_has_no_number_whatever_it_carries(self):
        figure, _ = self.figure(made.records())
        self.assertFalse([key for panel in figure.panels for key in panel.speeds if (key[1], key[0]) == made.FAILED])
        self.assertNotIn("999", [style.value_text(top) for top in figure.tops()])

    def test_untimed_cases_are_not_drawn(self):
        untimed = made.result("eager", "attention hq=32 d=64 lq=17", "forward")
        failed = made.result("sdpa_math", "attention hq=32 d=64 lq=17", "forward", status="failed", reason="o")
        figure, _ = self.figure([*made.records(), untimed, failed])
        self.assertEqual([panel.ticks for panel in figure.panels], [list(made.LENGTHS)] * 4)

    def test_a_length_at_which_nothing_fitted_is_shown(self):
        skipped = made.result("eager", "attention hq=32 d=64 lq=32768", "forward", status="skipped",
                              reason="needs 300.0 GiB for the pass, 130.1 GiB free")
        figure, _ = self.figure([*made.records(), skipped])
        self.assertEqual(figure.panels[0].gaps[32768, "eager"], "OOM")

    def test_unsupported_leaves_no_trace(self):
        record = made.result("plain", "attention b=32 hq=32 d=64 lq=512", "forward", status="unsupported", reason="d=64: …")
        figure, _ = self.figure([*made.records(), record])
        self.assertNotIn("plain", figure.backends())

    def test_lines_break_where_there_is_no_number_and_the_band_is_the_interval(self):
        figure, run = self.figure(made.records())
        drawing = lines.draw(figure, run.ours)
        axis = self.panel_axes(drawing, "head dim 64, 32 heads, full")
        by_name = {line.get_label(): line for line in axis.get_lines()}
        gap = list(made.LENGTHS).index(made.FAILED[1])
        self.assertNotEqual(by_name["sdpa_cudnn"].get_ydata()[gap], by_name["sdpa_cudnn"].get_ydata()[gap])  # nan
        speed = made.tflops_of("flash_varlen", 512, 64, "none", "forward", "sustained")
        self.assertAlmostEqual(by_name["flash_varlen"].get_ydata()[0], speed)
        edges = axis.collections[0].get_paths()[0].vertices[:, 1]  # 100 us, 95% within 96 to 105 us
        self.assertAlmostEqual(min(edges), speed * 100 / 105)
        self.assertEqual(axis.get_xscale(), "log")

    def test_mixes_have_their_own_figure(self):
        figure, _ = self.figure(made.records(), make=figures_of_mixes)
        self.assertEqual([panel.title for panel in figure.panels], ["head dim 128, 16 heads, 4 sequences of 512 to 8192 tokens, packed"])
        self.assertEqual(figure.panels[0].speeds["full", "flash_varlen"].tflops, 300.0)

    def test_padded_cases_are_timed_with_unpad_and_pad(self):
        time = made.timing("sustained", 200.0)
        time["windows"]["op+layout"] = {**time["windows"]["op"], "median_us": 200.0, "ci95_us": [190.0, 210.0]}
        record = made.result("flash_varlen", "attention d=64 lq=512 layout=padded", "forward", time=time)
        figure, _ = self.figure([made.header(), record])
        self.assertEqual(figure.panels[0].title, "head dim 64, 1 head, full, padded, with unpad and pad")
        self.assertEqual(figure.panels[0].speeds[512, "flash_varlen"].tflops, 100.0)

    def test_cases_that_differ_in_the_batch_alone_have_panels_of_their_own(self):
        two = [made.result("eager", f"attention {b}d=64 lq=512", "forward", time=made.timing("sustained", speed))
               for b, speed in (("", 10.0), ("b=4 ", 20.0))]
        figure, _ = self.figure([made.header(), *two])
        self.assertEqual([(panel.title, panel.speeds[512, "eager"].tflops) for panel in figure.panels],
                         [("head dim 64, 1 head, full", 10.0), ("head dim 64, 1 head, full, b=4", 20.0)])

    def test_ours_comes_first_and_colours_stay(self):
        self.assertEqual(style.in_order({"zeta", "eager", "sdpa_flash", "mine"}, ["mine"]), ["mine", "sdpa_flash", "eager", "zeta"])
        self.assertEqual(style.styles_of({"eager"})["eager"], style.styles_of({"eager", "zeta"})["eager"])
        looks = [(colour, hatch) for colour, hatch, _, _ in style.styles_of({"yotta", "zeta"}).values()]
        self.assertEqual(len(looks), len(set(looks)))

    def test_units_and_values(self):
        self.assertEqual(style.unit_of([0.5, 0.999])[0], "GFLOP/s")
        self.assertEqual(style.unit_of([0.5, 1.0])[0], "TFLOP/s")
        self.assertEqual([style.value_text(v) for v in (0.0123, 1.234, 12.34, 99.96, 123.4, 1234.5)],
                         ["0.0123", "1.23", "12.3", "100", "123", "1234"])

    def test_the_same_records_give_the_same_bytes(self):
        run = made.write(self.folder / "run", [record for record in made.records() if "d=64" in record.get("case", "d=64")])
        for name in ("one", "two"):
            self.assertEqual(called(run, "--out", self.folder / name)[0], 0)
        files = sorted(path.name for path in (self.folder / "one").iterdir())
        self.assertEqual(len(files), 8)  # bars and lines, two directions, two formats
        for name in files:
            one = (self.folder / "one" / name).read_bytes()
            self.assertEqual(one, (self.folder / "two" / name).read_bytes(), name)
            self.assertNotIn(b"CreationDate", one)

    def test_the_published_run_draws(self):
        published = read_run(ROOT / "reports/published/2026-11-21-cpu")
        bf16 = next(f for f in figures_over_length(published, "") if (f.dtype, f.direction) == ("bf16", "forward"))
        self.assertEqual((bf16.device, bf16.regime), ("cpu: AMD EPYC", "cpu_hot"))
        self.assertEqual(bf16.panels[0].gaps[512, "sdpa_flash"], "failed")

    def test_a_compressed_run_is_read_as_it_is(self):
        run = made.write(self.folder / "run", made.records())
        plain = read_run(run)
        file = run / "results.jsonl"
        (run / "results.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        self.assertEqual(read_run(run), plain)
        self.assertEqual(read_run(run / "results.jsonl.gz"), plain)

    def test_bad_input_is_answered_with_a_sentence(self):
        run = made.write(self.folder / "run", made.records())
        untimed = made.write(self.folder / "untimed", [made.header(), made.result("eager", "attention d=64 lq=1", "forward")])
        noise = made.write(self.folder / "noise", [])
        (noise / "results.jsonl").write_bytes(b"\x00\xff\xfe noise\n")
        wrong = made.write(self.folder / "wrong", [{"schema": 1, "record": "result", "case": 7}])
        other = made.write(self.folder / "other", [{"schema": 2, "record": "run"}])
        twice = made.write(self.folder / "twice", [*made.records(), made.records()[1]])
        file = self.folder / "file"
        file.write_text("", encoding="utf-8")
        for arguments, code, text in (
            ((self.folder / "nowhere",), 2, "No such file"),
            ((noise,), 2, "expected a run's folder or its results.jsonl"),
            ((wrong,), 2, "results.jsonl:1: not a record of schema 1"),
            ((other,), 2, "results.jsonl:1: expected schema 1, got 2"),
            ((twice,), 2, "two records of flash_varlen forward for the same case: attention b=32 hq=32 d=64 lq=512"),
            ((run, "--out", file / "deeper"), 2, "Not a directory"),
            ((run, "--colour"), 2, "unrecognized arguments: --colour"),
            ((untimed,), 4, "none of its 1 records was timed"),
            ((run, "--regime", "hot"), 4, "no time of the regime hot; there are: cooled, sustained"),
        ):
            with self.subTest(text):
                got, _, err = called(*arguments)
                self.assertEqual(got, code)
                self.assertIn(text, err)

    def test_a_cut_last_line_is_left_out(self):
        run = made.write(self.folder / "run", made.records())
        with open(run / "results.jsonl", "a", encoding="utf-8") as file:
            file.write('{"schema":1,"rec')
        warning = io.StringIO()
        with contextlib.redirect_stderr(warning):
            self.assertEqual(len(read_run(run).results), len(made.records()) - 1)
        self.assertIn("the last line is cut", warning.getvalue())


if __name__ == "__main__":
    unittest.main()
