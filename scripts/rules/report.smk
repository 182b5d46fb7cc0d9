"""The report: one job per figure, then one HTML file."""


rule figure:
    input:
        tensor=STUDY.config["stacked"],
        index="results/index.csv",
    output:
        report(
            "results/report/{figure}.png",
            caption="../gpi_latents/report/templates/captions.rst",
            category=lambda wildcards: paths.FIGURES[wildcards.figure][1],
            labels=lambda wildcards: {"figure": paths.FIGURES[wildcards.figure][0]},
        ),
        "results/report/{figure}.json",
    log:
        "logs/figure/{figure}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        color=map_color,
        command=command("figures.py"),
    shell:
        "{params.command} --figure {wildcards.figure} --index {input.index:q} --output {output:q} > {log:q} 2>&1"


rule report:
    input:
        expand("results/report/{figure}.{kind}", figure=STUDY.figures, kind=["png", "json"]),
        provenance="results/provenance.json",
    output:
        "results/report.html",
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
