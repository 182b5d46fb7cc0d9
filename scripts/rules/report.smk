"""The report: all figures in one job, then one HTML file."""


rule figures:
    input:
        tensor=STUDY.config["stacked"],
        index="results/index.csv",
    output:
        [
            report(
                f"results/report/{name}.png",
                caption=f"../gpi_latents/report/templates/caption_{name}.rst",
                category=paths.FIGURES[name][1],
                labels={"figure": paths.FIGURES[name][0]},
            )
            for name in STUDY.figures
        ],
        expand("results/report/{figure}.{kind}", figure=STUDY.figures, kind=["svg", "json"]),
    log:
        "logs/figures.log",
    conda:
        "../../envs/environment.yaml"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        # The column that colours the map; `<` could end a script in the page of `snakemake --report`.
        color=lambda wildcards: (STUDY.config["report_color"] or "").replace("<", "‹"),
        command=command("figures.py"),
    shell:
        "{params.command} --index {input.index:q} --folder results/report --threads {threads} > {log:q} 2>&1"


rule report:
    input:
        rules.figures.output,
        provenance="results/provenance.json",
    output:
        "results/report.html",
        "results/report.json",
    log:
        "logs/report.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        command=command("report.py"),
    shell:
        "{params.command} --provenance {input.provenance:q} --output {output:q} > {log:q} 2>&1"
