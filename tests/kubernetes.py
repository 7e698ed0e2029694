"""Lints packaging/kubernetes: `kubernetes.py DIRECTORY [ALL.yaml]`. Writes the files of the ConfigMap into the directory. ALL.yaml is
what kustomize has made of the manifests; without it, what of kustomize they use is done here."""

import os
import sys

import yaml

BASE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "packaging", "kubernetes")


def read(name):
    with open(os.path.join(BASE, name)) as file:
        return file.read()


def customized():
    """The manifests with labels, settings and image."""
    wanted = yaml.safe_load(read("kustomization.yaml"))
    known = {"apiVersion", "kind", "resources", "labels", "configMapGenerator", "images"}
    assert set(wanted) == known, f"this does not know {set(wanted) - known}"
    made = [it for name in wanted["resources"] for it in yaml.safe_load_all(read(name)) if it]
    for settings in wanted["configMapGenerator"]:
        data = {name: read(name) for name in settings["files"]}
        metadata = {"name": settings["name"] + "-hash"}
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for it in made:
        template = it["spec"].get("template") if it["kind"] == "StatefulSet" else None
        for labels in wanted["labels"]:
            assert labels["includeSelectors"] and labels["includeTemplates"], labels
            it["metadata"].setdefault("labels", {}).update(labels["pairs"])
            if template:
                it["spec"].setdefault("selector", {}).setdefault("matchLabels", {}).update(labels["pairs"])
                template.setdefault("metadata", {}).setdefault("labels", {}).update(labels["pairs"])
            elif it["kind"] == "Service":
                it["spec"].setdefault("selector", {}).update(labels["pairs"])
        if not template:
            continue
        for volume in template["spec"]["volumes"]:
            assert volume["configMap"]["name"] in [it["name"] for it in wanted["configMapGenerator"]], volume
            volume["configMap"]["name"] += "-hash"
        for container in template["spec"]["containers"]:
            [image] = [it for it in wanted["images"] if it["name"] == container["image"]]
            container["image"] += ":" + image["newTag"]
    return made


if len(sys.argv) > 2:
    with open(sys.argv[2]) as file:
        objects = [it for it in yaml.safe_load_all(file) if it]
else:
    objects = customized()
kinds = {}
for it in objects:
    assert it.get("apiVersion") and it["metadata"].get("name"), it
    kinds.setdefault(it["kind"], []).append(it)

[settings] = kinds["ConfigMap"]
[relay] = kinds["StatefulSet"]
services = {it["metadata"]["name"]: it["spec"] for it in kinds["Service"]}
spec = relay["spec"]
template = spec["template"]
pod = template["spec"]
[container] = pod["containers"]

# Selectors fit the pod, and the StatefulSet its service.
labels = template["metadata"]["labels"]
for selector in [spec["selector"]["matchLabels"], *(it["selector"] for it in services.values())]:
    assert selector and selector.items() <= labels.items(), selector
assert services[spec["serviceName"]]["clusterIP"] == "None"

# Ports by name, and the probes at them.
ports = {it["name"]: it["containerPort"] for it in container["ports"]}
for service in services.values():
    for port in service["ports"]:
        assert ports[port["targetPort"]] == port["port"], port
paths = {"livenessProbe": "/livez", "readinessProbe": "/readyz"}
for probe, path in paths.items():
    get = container[probe]["httpGet"]
    assert get["path"] == path and get["port"] in ports, (probe, get)

# Volumes that are mounted are there.
volumes = {it["name"] for it in pod["volumes"]} | {it["metadata"]["name"] for it in spec["volumeClaimTemplates"]}
mounted = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
assert set(mounted) == volumes, (mounted, volumes)
assert pod["volumes"][0]["configMap"]["name"] == settings["metadata"]["name"]
for claim in spec["volumeClaimTemplates"]:
    assert claim["spec"]["accessModes"] and claim["spec"]["resources"]["requests"]["storage"]

# Nobody's root, and nothing that a relay has no use for.
assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
rights = container["securityContext"]
assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
assert rights["capabilities"]["drop"] == ["ALL"]
assert pod["automountServiceAccountToken"] is False
# --shutdown-timeout and four seconds.
assert pod["terminationGracePeriodSeconds"] > 14
assert container["image"].rsplit(":", 1)[1] != "latest" and container["resources"]["limits"]["memory"]

# No secret in a manifest, and nothing that would win over the file.
for variable in container["env"]:
    assert not variable["name"].startswith("WALRELAY_"), variable
    assert "PASSWORD" not in variable["name"] or variable["valueFrom"]["secretKeyRef"]["name"], variable

for name, text in settings["data"].items():
    with open(f"{sys.argv[1]}/{name}", "w") as file:
        file.write(text)
