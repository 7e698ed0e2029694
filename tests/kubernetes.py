"""Lints what kustomize has made of packaging/kubernetes: `kubernetes.py ALL.yaml DIRECTORY`. Writes the files of the ConfigMap into
the directory."""

import sys

import yaml

objects = [it for it in yaml.safe_load_all(open(sys.argv[1])) if it]
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

# No secret in a manifest.
for variable in container["env"]:
    assert "PASSWORD" not in variable["name"] or variable["valueFrom"]["secretKeyRef"]["name"], variable

for name, text in settings["data"].items():
    with open(f"{sys.argv[2]}/{name}", "w") as file:
        file.write(text)
