"""The report of a study: its results put into words and tables, and rendered as one HTML page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from markupsafe import Markup

from retrograd import __version__, atlas_figures, details, drawing, figures, fit_figures, page_tables, remedies
from retrograd.comparison_page import told as comparison_told
from retrograd.pages import number, pages, shown_path, write
from retrograd.results import Results
from retrograd.schema import CAUSES, OUTCOMES, STAGES, VERDICTS
from retrograd.wording import (
    CAUSE_WORDS,
    METHOD_WORDS,
    OUTCOME_MEANING,
    VERDICT_WORDS,
    describe,
    lead,
    verdict,
    wrt_words,
)

FIGURES = {**figures.FIGURES, **atlas_figures.FIGURES, **fit_figures.FIGURES}
TEMPLATE = "report.html.j2"


# --- where it all comes from ----------------------------------------------------------------------


def provenance(results: Results) -> dict[str, Any]:
    """Returns inputs, environments, code and contents of all files that the report is drawn from."""
    files = []
    for treated in results.variants:
        stages = {
            "steady_state": treated.steady,
            "dynamics": treated.dynamics,
            "gradients": treated.gradients,
            "fit": treated.fit,
        }
        files += [(f"{treated.name}/{stage}.nc", stage, ds) for stage, ds in stages.items() if ds is not None]
    files += [("summary.nc", "summary", results.summary), ("model.nc", "export", results.model)]
    inputs: dict[str, dict[str, None]] = {}
    codes: dict[str, dict[str, None]] = {}
    environments: dict[str, dict[str, list[str]]] = {}
    for path, stage, ds in files:
        for name, digest in json.loads(ds.attrs.get("retrograd_inputs", "{}")).items():
            if name in ("plugin", "weights", "scenarios"):
                inputs.setdefault(name, {})[digest] = None
        codes.setdefault(stage, {})[str(ds.attrs.get("retrograd_code_digest", ""))] = None
        if stage in STAGES:
            for key, value in json.loads(ds.attrs.get("retrograd_environment", "{}")).items():
                text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                where = environments.setdefault(key, {}).setdefault(text, [])
                variant = path.partition("/")[0]
                if variant not in where:
                    where.append(variant)
    return {
        "inputs": [(name, list(digests)) for name, digests in sorted(inputs.items())],
        "codes": [(stage, list(digests)) for stage, digests in codes.items()],
        "environment": [(key, list(found.items())) for key, found in sorted(environments.items())],
        "files": [(path, str(ds.attrs.get("retrograd_content_sha256", ""))) for path, _, ds in files],
    }


def study_yaml(results: Results) -> str:
    """Returns the study's config as YAML, defaults written out; of absolute paths the file's name is left."""
    study = json.loads(json.dumps(results.settings["study"]))
    model = study.get("model", {})
    for holder, key in ((study, "scenarios"), (model, "plugin"), (model, "weights")):
        if holder.get(key):
            holder[key] = shown_path(holder[key])
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True, default_flow_style=None, width=88)


# --- the model, and who is to be cited ----------------------------------------------------------------

# Of MathML: what a formula may consist of.
_MATHML = frozenset(
    (
        *(
            "math",
            "mrow",
            "mi",
            "mn",
            "mo",
            "ms",
            "mtext",
            "mspace",
            "mfrac",
            "msqrt",
            "mroot",
            "msub",
            "msup",
            "msubsup",
        ),
        *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mpadded", "mphantom", "menclose", "mstyle"),
    )
)


def formula(tex: str) -> Markup | None:
    """Returns LaTeX as MathML, None where there is no formula."""
    if not tex:
        return None
    try:
        root = ET.fromstring(convert(tex, display="block"))
    except Exception:
        # A file from elsewhere may hold anything: what is no formula is left out.
        return None
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        if node.tag not in _MATHML:
            return None
        node.attrib = {key: value for key, value in node.attrib.items() if not key.startswith("on") and key != "href"}
    # A block of its own would be centred.
    root.attrib |= {"display": "inline", "displaystyle": "true"}
    return Markup(ET.tostring(root, encoding="unicode"))


def model_told(results: Results) -> dict[str, Any]:
    """Returns what the page says of the model."""
    attrs, best = results.model.attrs, results.best
    symbols, left_out = page_tables.symbol_table(results)
    formulas = [formula(str(tex)) for tex in results.model["equation"].values]
    return {
        "name": str(attrs.get("model_class", "")) or results.settings["study"]["model"].get("class", ""),
        "weights": int(attrs.get("n_weights", 0)),
        "states": best.states,
        "symbols": symbols,
        "told": any(row["meaning"] for row in symbols),
        "symbols_left_out": left_out,
        "formulas": [f for f in formulas if f is not None],
        "without": [name for name, f in zip(best.states, formulas, strict=False) if f is None],
        "description": str(attrs.get("description", "")),
        "text": str(attrs.get("vector_field", "")),
        "networks": json.loads(attrs.get("networks", "{}")),
        "jump_times": json.loads(attrs.get("jump_times", "[]")),
        "loss": str(attrs.get("loss", "")),
    }


def bibtex(results: Results) -> str:
    """Returns what to cite in BibTeX: the study, by the content of its summary, and the software."""
    content = str(results.summary.attrs.get("retrograd_content_sha256", ""))
    study = {
        "title": f"{{The study {results.study}}}",
        "note": f"results of Retrograd, content of summary.nc {content}",
    }
    software = {"author": "{The Retrograd developers}", "title": "{Retrograd}", "version": __version__}
    told = lambda fields: "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items())
    entries = (("misc", results.study, study), ("software", "retrograd", software))
    return "\n".join(f"@{kind}{{{key},\n{told(fields)}}}" for kind, key, fields in entries)


# --- the page -------------------------------------------------------------------------------------


def figure_labels(results: Results) -> dict[str, str]:
    """Returns what each figure shows, in a sentence for those who cannot see it."""
    best, names = results.best, results.scenarios
    shown = [v.name for v in results.shown]
    counted = "; ".join(f"{v.name}: {verdict(results, v).rstrip('.')}" for v in results.shown)
    medians = "; ".join(
        f"{r['name']} {number(r['median'])}" for r in page_tables.verdict_table(results) if r["name"] in shown
    )
    drawn = ", ".join(names[s] for s in figures.shown_trajectories(results)) or "none"
    pair = " and ".join(v.name for v in (results.contrast, results.best) if v is not None)
    stepped = ", ".join(names[s] for _, s in figures.shown_steps(results)) or "none"
    panels = ", ".join(v.name for v in figures.shown_variants(results))
    paired = ", ".join(v.name for v in figures.shown_pairs(results)) or "none"
    swept = ", ".join(best.wrt[j] for j in figures.shown_sweeps(results)[0]) or "none"
    return {
        "outcomes": f"Bar chart of outcomes by variant. {counted}.",
        "trajectories": f"Line charts of the states over model time under {best.name}. Scenarios: {drawn}.",
        "steps": f"Step size over model time under {pair}. Scenarios: {stepped}.",
        "attempts": f"Attempts of every scenario by variant. Medians: {medians}.",
        "gradient_errors": f"Differences of AD and FD derivatives beside their bounds. Variants: {panels}.",
        "dot_product": f"Distance of adjoint and tangent in each scenario, by variant: {paired}.",
        "difference_sweep": f"Error of the difference quotient over its width under {best.name}: {swept}.",
    }


def page(results: Results, svgs: Mapping[str, bytes]) -> str:
    """Returns the report as one HTML page.

    - `svgs`: figures by name; those that are missing are left out.
    """
    labels = figure_labels(results) | atlas_figures.labels(results) | fit_figures.labels(results)
    environment = pages()
    environment.filters["points"] = lambda value: f"+{value}" if value > 0 else str(value).replace("-", "−")
    template = environment.get_template(TEMPLATE)
    derivatives, derivatives_left_out = page_tables.derivative_table(results)
    scenarios, scenarios_left_out = page_tables.scenario_table(results)
    best = results.best
    detailed = details.page_data(results, [CAUSE_WORDS[name] for name in CAUSES])
    detailed["best"] = results.shown.index(best) if best in results.shown else 0
    return template.render(
        version=__version__,
        r=results,
        best=best,
        contrast=results.contrast,
        # Our own serialisation of a parsed SVG: every text in it is escaped.
        svg={n: Markup(drawing.inline(svgs[n], n, labels[n])) if n in svgs else "" for n in FIGURES},
        outcomes=[(n, drawing.OUTCOME_STYLE[n][0], OUTCOME_MEANING[n]) for n in OUTCOMES],
        verdicts=[VERDICT_WORDS.get(v, v) for v in VERDICTS],
        rows=page_tables.verdict_table(results),
        shown=[v.name for v in results.shown],
        main_effects=remedies.effect_rows(results, "main"),
        interactions=remedies.effect_rows(results, "interaction"),
        beside=remedies.effect_rows(results, "beside"),
        cures=remedies.cure_rows(results),
        uncured=remedies.without_cure(results),
        advice=remedies.advice(results),
        rescued=any(page_tables.rescued(results, i) for i in range(len(results.variants))),
        described=describe(results),
        methods=page_tables.method_table(results),
        independent=page_tables.independent_table(results),
        derivatives=derivatives,
        derivatives_left_out=derivatives_left_out,
        steady=page_tables.steady_table(results),
        failures=page_tables.failure_table(results),
        scenarios=scenarios,
        scenarios_left_out=scenarios_left_out,
        model=model_told(results),
        details=Markup(_as_script(detailed)),
        n_details=len(detailed["scenarios"]),
        lead=lead(results),
        fewest=page_tables.fewest_digits(results),
        unsure=page_tables.undetermined(results),
        wrt_told=wrt_words(results),
        methods_told=[(name, METHOD_WORDS[name]) for name in best.methods],
        without_ratio=atlas_figures.without_ratio(results),
        files_of={key: shown_path(results.settings["study"]["model"].get(key)) for key in ("plugin", "weights")}
        | {"scenarios": shown_path(results.settings["study"].get("scenarios"))},
        compared=comparison_told(results.comparison),
        bibtex=bibtex(results),
        times=[float(t) for t in best.dynamics["model_time"].values],
        trajectories=figures.shown_trajectories(results),
        stepped=figures.shown_steps(results),
        paired=figures.shown_pairs(results),
        shown_variants=figures.shown_variants(results),
        shown_wrt=len(figures.shown_wrt(best)),
        sweeps=len(figures.shown_sweeps(results)[0]),
        mapped=atlas_figures.mapped_columns(results),
        maps=len(atlas_figures.shown_maps(results)),
        maps_of=len(atlas_figures.mapped_scenarios(results)),
        stiffness_of=len(atlas_figures.plotted_scenarios(results)),
        cause_sets=len(atlas_figures.met_causes(results)),
        most_sets=atlas_figures.MOST_SETS,
        evaluated=atlas_figures.shown_evaluation(results),
        reference=best.methods[figures.reference_method(best)],
        sensitivity=page_tables.median(figures.relative(best.bound, best)[:, best.methods.index(best.method)]),
        most_states=figures.MOST_STATES,
        fit=fit_figures.told(results),
        provenance=provenance(results),
        config=study_yaml(results),
        plugin=shown_path(results.settings["study"]["model"].get("plugin")),
    )


def _as_script(data: Any) -> str:
    """Returns data as JSON for inside a script element, where nothing in it can end the element."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def make(results: Results, html: str, svg: Sequence[str], png: Sequence[str]) -> dict[str, int]:
    """Draws the figures, writes them and the page; returns the sizes of the files in bytes, by name.

    - `svg`, `png`: paths; a file's stem is the name of its figure.
    """
    sizes = {}
    svgs = {}
    wanted = {"svg": list(svg), "png": list(png)}
    for name in dict.fromkeys(Path(p).stem for p in (*svg, *png)):
        paths = {form: [p for p in found if Path(p).stem == name] for form, found in wanted.items()}
        for form, content in drawing.render(FIGURES[name], results, [form for form in paths if paths[form]]).items():
            for path in paths[form]:
                write(path, content)
                sizes[Path(path).name] = len(content)
            if form == "svg":
                svgs[name] = content
    content = page(results, svgs).encode()
    write(html, content)
    return {Path(html).name: len(content), **sizes}
