"""The job description for Kubernetes against the published schemas of Job and JobSet."""

import copy

import pytest
import yaml

from tests.test_launch import SWEEP, _render

WHY = "needs pip install -e '.[test]'"
kubernetes = pytest.importorskip("kubernetes_validate.utils", reason=WHY)
jobsets = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set", reason=WHY)

# `backoffLimitPerIndex` is on by default from 1.29.
VERSIONS = [
    version
    for version in sorted({*kubernetes.all_versions()})
    if [*map(int, version.split("."))] >= [1, 29]
]


def _jobset(**changes):
    return yaml.safe_load(_render("jobset.yaml", [*SWEEP, "--workdir=/runs/sweep"], **changes))


def _check_job(jobset):
    """Refuses what the schema of the Job that is made of it does not know or allow."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "nad-jax-shards-0"}}
    for version in VERSIONS:
        kubernetes.validate({**job, **replicated["template"]}, version, strict=True)


def _check_jobset(jobset):
    """Refuses what the schema of JobSets does not know or allow."""
    jobset = copy.deepcopy(jobset)
    # These models take quantities as objects only; the Job's schema checks them.
    del _container(jobset)["resources"]
    jobsets.JobsetV1alpha2JobSet.model_validate(jobset, extra="forbid")


def _spec(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def _container(jobset):
    return _spec(jobset)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_jobset_and_its_job_are_what_their_schemas_allow(gpus):
    assert len(VERSIONS) > 3
    jobset = _jobset(gpus=gpus)
    _check_job(jobset)
    _check_jobset(jobset)


def _without_status(jobset):
    # JobSet's own schema and that of Jobs before 1.35 want it, though it has a default.
    del _spec(jobset)["podFailurePolicy"]["rules"][1]["onPodConditions"][0]["status"]


@pytest.mark.parametrize(
    ("check", "named", "breaks"),
    [
        (_check_job, "completionMod", lambda jobset: _spec(jobset).update(completionMod="Indexed")),
        (_check_job, "two", lambda jobset: _spec(jobset).update(completions="two")),
        (_check_job, "status", _without_status),
        (_check_job, "name", lambda jobset: _container(jobset).pop("name")),
        (_check_job, "many", lambda jobset: _container(jobset)["resources"].update(limits="many")),
        (
            _check_jobset,
            "completionMod",
            lambda jobset: _spec(jobset).update(completionMod="Index"),
        ),
        (_check_jobset, "successPolic", lambda jobset: jobset["spec"].update(successPolic={})),
        (
            _check_jobset,
            "replicas",
            lambda jobset: jobset["spec"]["replicatedJobs"][0].update(replicas="one"),
        ),
        (_check_jobset, "name", lambda jobset: jobset["spec"]["replicatedJobs"][0].pop("name")),
    ],
)
def test_a_broken_field_is_found(check, named, breaks):
    jobset = _jobset(gpus=1)
    breaks(jobset)
    with pytest.raises((kubernetes.ValidationError, ValueError), match=named):
        check(jobset)
