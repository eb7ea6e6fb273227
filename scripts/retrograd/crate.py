"""What an archive says of itself: RO-Crate metadata, citation, and a page for the person who opens it.

The metadata is JSON-LD of RO-Crate 1.1 with the profile Provenance Run Crate 0.5 (Leo et al. 2024, PLoS ONE 19(9)):
a workflow with its steps and tools, and for each result file the action that made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from retrograd.archive import CONFIG, MANIFEST, METADATA

_RUN_TERMS = "https://w3id.org/ro/terms/workflow-run#"
_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_FORMATS = {
    ".nc": "application/netcdf",
    ".py": "text/x-python",
    ".tsv": "text/tab-separated-values",
    ".yaml": "application/yaml",
    ".json": "application/json",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".md": "text/markdown",
    ".toml": "application/toml",
}
# What the inputs of a study are.
_ROLES = {
    "config": "the study's config",
    "plugin": "the plug-in with the model",
    "weights": "pretrained weights",
    "scenarios": "the table of scenarios",
    "sbml": "the model in SBML, of which the plug-in was made",
    "antimony": "the model in Antimony, of which the plug-in was made",
    "petab": "the problem in PEtab, of which the plug-in, the weights and the scenarios were made",
}


def _told(role: str) -> str:
    kind, _, beside = role.partition("/")
    return f"a file of {_ROLES[kind]}" if beside else _ROLES[kind]


# The rules whose files an archive holds, in order, with their script.
STEPS = {
    "export": ("export_model.py", "brings the pretrained weights into a neutral file"),
    "steady_state": ("find_steady_state.py", "finds the steady state of each scenario"),
    "dynamics": ("simulate.py", "simulates each scenario and records every step"),
    "gradients": ("check_gradients.py", "forms and checks the gradient of each scenario"),
    "fit": ("fit.py", "holds simulations against the measurements"),
    "summary": ("summarize.py", "judges every scenario under every variant"),
    "effects": ("weigh_remedies.py", "weighs the remedies of a factorial study"),
    "report": ("plot_report.py", "draws the figures and writes the page"),
}


def metadata(
    study: Mapping[str, Any],
    roles: Mapping[str, str],
    jobs: Iterable[tuple[str, str, list[str], list[str]]],
    environment: Mapping[str, Any],
    files: Mapping[str, tuple[int, str]],
    software: Mapping[str, str],
) -> bytes:
    """Returns `ro-crate-metadata.json`.

    - `study`: the study as its config has it.
    - `roles`: what a study is given (`config`, `plugin`, ...) -> file.
    - `jobs`: step, name, files read, files written.
    - `environment`: what the results were computed in.
    - `files`: name -> size and sha256, the manifest and the metadata left out.
    - `software`: `version` and `released` of Retrograd, `snakemake` of the lock.
    """
    jobs, licence = list(jobs), _licence(study)
    about, name = study["publication"], study["study"]
    steps = [s for s in STEPS if any(job[0] == s for job in jobs)]
    tool = {s: f"scripts/{STEPS[s][0]}" for s in steps}
    results = sorted({f for *_, written in jobs for f in written})
    packages = {k: v for k, v in sorted(environment.items()) if v not in ("", [], None)}
    actions = {job[1]: f"#job/{job[1]}" for job in jobs}
    graph: list[dict[str, Any]] = [
        {
            "@id": METADATA,
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": ref(["https://w3id.org/ro/crate/1.1", "https://w3id.org/workflowhub/workflow-ro-crate/1.0"]),
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": title(study),
            "description": _description(study),
            "datePublished": about["date"] or software["released"],
            "license": {"@id": licence} if licence else "not stated by the study; Retrograd is under Apache-2.0",
            **({"author": ref(_author_ids(study))} if about["authors"] else {}),
            "conformsTo": ref(_PROFILES),
            "mainEntity": {"@id": "Snakefile"},
            "hasPart": ref(sorted([*files, MANIFEST])),
            "mentions": ref(["#run", "#organized", *actions.values()]),
            **({"identifier": f"https://doi.org/{about['doi']}"} if about["doi"] else {}),
        },
        *({"@id": i, "@type": "CreativeWork", "name": n, "version": v} for i, (n, v) in _PROFILES.items()),
        *_authors(study),
        *([{"@id": licence, "@type": "CreativeWork", "name": about["license"]}] if licence else []),
        {
            "@id": "Snakefile",
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "name": "Retrograd",
            "version": software["version"],
            "license": "https://spdx.org/licenses/Apache-2.0",
            "programmingLanguage": {"@id": "#snakemake"},
            "hasPart": ref(tool.values()),
            "step": ref(f"#step/{s}" for s in steps),
            "input": ref(f"#input/{role}" for role in roles),
            "output": ref(["#output/results", "#output/report"]),
            **_file("Snakefile", files),
        },
        {
            "@id": "#snakemake",
            "@type": ["ComputerLanguage", "SoftwareApplication"],
            "name": "Snakemake",
            "version": software["snakemake"],
            "softwareVersion": software["snakemake"],
            "identifier": "https://w3id.org/workflowhub/workflow-ro-crate#snakemake",
            "url": "https://snakemake.readthedocs.io",
        },
    ]
    for position, step in enumerate(steps, 1):
        entity = {"@type": "HowToStep", "name": step, "description": STEPS[step][1], "position": str(position)}
        graph.append({"@id": f"#step/{step}", **entity, "workExample": {"@id": tool[step]}})
        made = {
            "@id": tool[step],
            "@type": ["File", "SoftwareSourceCode"],
            "name": step,
            "version": software["version"],
        }
        made |= {"description": STEPS[step][1], "programmingLanguage": {"@id": "#python"}}
        graph.append(made | _file(tool[step], files))
    graph.append({"@id": "#python", "@type": "ComputerLanguage", "name": "Python", "url": "https://www.python.org"})
    for role, file in roles.items():
        parameter = {"@type": "FormalParameter", "name": role, "description": _told(role), "additionalType": "File"}
        graph.append({"@id": f"#input/{role}", **parameter, "workExample": {"@id": file}})
    pages = [f for f in results if "/report/" in f]
    for which, made in (("results", [f for f in results if f not in pages]), ("report", pages)):
        parameter = {"@type": "FormalParameter", "name": which, "additionalType": "File"}
        graph.append({"@id": f"#output/{which}", **parameter, "workExample": ref(made)})
    done = {"actionStatus": "http://schema.org/CompletedActionStatus"}
    graph += [
        {
            "@id": "#run",
            "@type": "CreateAction",
            "name": f"run of the study {name}",
            "description": f"Snakemake made every result of the study {name} from its config, model and scenarios",
            "instrument": {"@id": "Snakefile"},
            "object": ref(roles.values()),
            "result": ref(results),
            "environment": ref(f"#environment/{key}" for key in packages),
            **done,
        },
        {
            "@id": "#organized",
            "@type": "OrganizeAction",
            "name": f"organisation of the study {name}",
            "description": f"Snakemake ordered the jobs of the study {name}",
            "instrument": {"@id": "#snakemake"},
            "object": ref(f"#control/{job[1]}" for job in jobs),
            "result": {"@id": "#run"},
            **done,
        },
    ]
    for step, job, read, written in jobs:
        made = {"@type": "CreateAction", "name": job, "description": f"rule {step}, which {STEPS[step][1]}"}
        made |= {"instrument": {"@id": tool[step]}, "object": ref(read), "result": ref(written), **done}
        graph.append({"@id": actions[job], **made})
        control = {"@type": "ControlAction", "name": f"start of {job}", "description": f"rule {step} was run: {job}"}
        control |= {"instrument": {"@id": f"#step/{step}"}, "object": {"@id": actions[job]}, **done}
        graph.append({"@id": f"#control/{job}", **control})
    for key, value in packages.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        graph.append({"@id": f"#environment/{key}", "@type": "PropertyValue", "name": key, "value": text})
    told = {entity["@id"] for entity in graph}
    examples = {file: f"#input/{role}" for role, file in roles.items()}
    examples |= {file: f"#output/{'report' if file in pages else 'results'}" for file in results}
    for file in sorted(set(files) - told):
        made = {"@id": file, "@type": "File", "name": _said(file, roles), **_file(file, files)}
        made |= {"exampleOfWork": {"@id": examples[file]}} if file in examples else {}
        graph.append(made | ({"about": {"@id": "./"}} if file == "README.md" else {}))
    graph.append({"@id": MANIFEST, "@type": "File", "name": "sha256 of every other file, as sha256sum reads it"})
    terms = {term: f"{_RUN_TERMS}{term}" for term in ("environment", "sha256")}
    crate = {"@context": ["https://w3id.org/ro/crate/1.1/context", terms], "@graph": graph}
    return (json.dumps(crate, indent=1, ensure_ascii=False) + "\n").encode()


def ref(ids: Iterable[str]) -> Any:
    """Returns references to entities; a single one stands alone, as RO-Crate recommends."""
    out = [{"@id": i} for i in ids]
    return out[0] if len(out) == 1 else out


def _licence(study: Mapping[str, Any]) -> str | None:
    name = study["publication"]["license"]
    return f"https://spdx.org/licenses/{name}" if name else None


def _file(name: str, files: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    size, sha256 = files[name]
    kind = _FORMATS.get(PurePosixPath(name).suffix)
    return {"contentSize": str(size), "sha256": sha256, **({"encodingFormat": kind} if kind else {})}


def _said(file: str, roles: Mapping[str, str]) -> str:
    return next((_told(role) for role, path in roles.items() if path == file), PurePosixPath(file).name)


def title(study: Mapping[str, Any]) -> str:
    """Returns the title of an archive."""
    return study["publication"]["title"] or f"{study['study']}: a study made with Retrograd"


def _description(study: Mapping[str, Any]) -> str:
    own = study["publication"]["description"]
    return own or (
        f"Steady states, trajectories with every solver step, gradients with their error bounds, and verdicts of the "
        f"study {study['study']}, with everything that it takes to compute them again."
    )


def _authors(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"@id": i, "@type": "Person", "name": a["name"]}
        | ({"affiliation": a["affiliation"]} if a["affiliation"] else {})
        for i, a in zip(_author_ids(study), study["publication"]["authors"], strict=True)
    ]


def _author_ids(study: Mapping[str, Any]) -> list[str]:
    authors = enumerate(study["publication"]["authors"], 1)
    return [f"https://orcid.org/{a['orcid']}" if a["orcid"] else f"#author/{n}" for n, a in authors]


# -- for people and repositories ---------------------------------------------------------------------------


def citation(study: Mapping[str, Any], software: Mapping[str, str]) -> bytes:
    """Returns `CITATION.cff` (Citation File Format 1.2.0) of the archive as a dataset."""
    about = study["publication"]
    author = lambda a: (
        {k: v for k, v in {"name": a["name"], "affiliation": a["affiliation"]}.items() if v}
        | ({"orcid": f"https://orcid.org/{a['orcid']}"} if a["orcid"] else {})
    )
    told = {
        "cff-version": "1.2.0",
        "message": "If you use these results, please cite them as below, and the software beside them.",
        "type": "dataset",
        "title": title(study),
        "abstract": _description(study),
        # The format wants one author at least.
        "authors": [author(a) for a in about["authors"]] or [{"name": f"The authors of the study {study['study']}"}],
        "doi": about["doi"],
        "date-released": about["date"],
        "license": about["license"],
        "references": [
            {
                "type": "software",
                "title": "Retrograd",
                "version": software["version"],
                "date-released": software["released"],
                "authors": [{"name": "The Retrograd developers"}],
                "license": "Apache-2.0",
            }
        ],
    }
    return yaml.safe_dump({k: v for k, v in told.items() if v}, sort_keys=False, allow_unicode=True).encode()


def zenodo(study: Mapping[str, Any]) -> bytes:
    """Returns `.zenodo.json`, which Zenodo takes its form's fields from."""
    about = study["publication"]
    creators = [{k: v for k, v in a.items() if v} for a in about["authors"]]
    told = {
        "upload_type": "dataset",
        "title": title(study),
        "description": _description(study),
        "creators": creators or [{"name": f"The authors of the study {study['study']}"}],
        "publication_date": about["date"],
        "license": about["license"],
        "doi": about["doi"],
        "keywords": ["ordinary differential equations", "stiff systems", "gradients", "reproducibility"],
    }
    return (json.dumps({k: v for k, v in told.items() if v}, indent=1, ensure_ascii=False) + "\n").encode()


def readme(study: Mapping[str, Any], environment: Mapping[str, Any], software: Mapping[str, str]) -> bytes:
    """Returns the page that a person reads first."""
    name = study["study"]
    there = ", ".join(
        f"{key} {environment[key]}" for key in ("jax", "diffrax", "numpy", "python") if key in environment
    )
    on = f"{environment.get('platform', 'unknown')} on {environment.get('machine', 'unknown')}"
    return f"""# {title(study)}

{_description(study)}

`results/{name}/report/index.html` is the report: open it in a browser, it needs no network. The netCDF files beside it
hold every number. `{CONFIG}` is the study's config; plug-in, weights and scenarios are where it says.

Computed with Retrograd {software["version"]}, {there}, {on}.

## Is it whole?

    sha256sum --check {MANIFEST}

in the unpacked folder checks every file. In a copy of Retrograd

    snakemake --cores 1 verify --config archive=PATH/TO/{name}.zip

checks besides that nothing stands between the files, and that each result was computed from the files that are here.

## Compute it again

The unpacked folder holds the workflow as it was, with hash-pinned locks in `envs/`, and its default study is this one.
Delete `results/{name}` and say `make run`, on Linux or macOS with Python 3.11 to 3.13, make and a package index. The
plug-in is code that will run.
""".encode()
