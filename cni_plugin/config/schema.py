"""The netconf as people write it, described: types, patterns, what each field does, as a JSON Schema.

Not on the plugin's path: pydantic costs 128 ms to import, so the plugin has `config.netconf`. A type
here says what a value looks like; what it means is asked of the same readers that the plugin uses,
and a property test (tests/config) proves that both accept and refuse the same inputs. What only a
runtime inserts (prevResult, runtimeConfig, args, the attachments of GC) is not described here.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationInfo, WithJsonSchema, field_validator

from cni_plugin.config import netconf
from cni_plugin.config.fields import FIELDS
from cni_plugin.model.errors import CniError
from cni_plugin.model.parse import MAX_ID, MAX_PORT
from cni_plugin.model.request import Netconf

_CAMEL = {snake: camel for camel, (snake, _) in FIELDS.items()}
_OPTION = {snake: key for key, (snake, _) in netconf.OPTIONS.items()}
_KEY = {**_OPTION, "cni_version": "cniVersion"}
_REQUIRED = {
    "cni_version": lambda _, value: netconf.version({"cniVersion": value}),
    "name": netconf.network_name,
}

Number = Annotated[int, Strict(), Field(ge=0, le=MAX_PORT)]
Port = Annotated[int, Strict(), Field(ge=1, le=MAX_PORT)]
Identity = Annotated[int, Strict(), Field(ge=0, le=MAX_ID)]
Range = Annotated[str, Field(pattern=r"^[0-9]{1,10}(-[0-9]{1,10})?$", examples=["8000-8100"])]
Everything = Literal["*"]
Ports = Everything | list[Number | Range]
Ids = Everything | list[Identity | Range]
Address = Annotated[str, Field(pattern=r"^[0-9a-fA-F:.]+$", examples=["10.96.0.10", "fd00::a"])]
Network = Annotated[
    str, Field(pattern=r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$", examples=["10.0.0.0/8", "fd00::/8"])
]
Prefixes = Everything | list[Network]
Interface = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]*\+?$", max_length=15, examples=["eth1", "tap+"])
]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Path = Annotated[str, Field(pattern="^/")]
Flag = Annotated[bool, Strict()]


def _unset(description: str, default: Any = None) -> Any:
    """Describe a field that may be left out; `default` is what the plugin then takes, None the dialect's."""
    return Field(default=default, description=description)


class _Described(BaseModel):
    model_config = ConfigDict(strict=True, validate_default=False)

    def given(self) -> dict[str, Any]:
        """Return the fields that were written, by their snake_case names, as the plugin's reader has them."""
        return {
            field: getattr(self, field) for field in type(self).model_fields if field in self.model_fields_set
        }


def _asked(read: Any, name: str, value: Any) -> Any:
    try:
        return read(name, value)
    except CniError as error:
        raise ValueError(error.msg) from None


class UidExclusionModel(_Described):
    """Row O2 for some uids: these ports, for processes of these uids, pass the proxy by."""

    model_config = ConfigDict(extra="forbid", title="excludeOutboundPortsForUids")

    uids: Ids = Field(description="uids whose processes this is for")
    ports: Ports = _unset("destination ports that pass", "*")
    protocol: Literal["tcp", "udp", "any"] = _unset("protocol of those ports", "any")


class RedirectionModel(_Described):
    """What is redirected: overrides of the dialect's defaults. docs/ARCHITECTURE.md has the contract."""

    model_config = ConfigDict(extra="forbid", alias_generator=_CAMEL.__getitem__, title="redirection")

    proxy_uids: Ids = _unset("uids of the proxy, whose traffic is left alone")
    proxy_gids: Ids = _unset("gids of the proxy, as good as its uids")
    inbound: Literal["redirect", "tproxy", "off"] = _unset("how inbound TCP reaches the proxy")
    outbound: Literal["redirect", "off"] = _unset("how outbound TCP reaches the proxy")
    inbound_port: Port = _unset("port on which the proxy takes inbound connections")
    outbound_port: Port = _unset("port on which the proxy takes outbound connections")
    dns_port: Port = _unset("port on which the proxy answers DNS")
    tunnel_port: Number = _unset("port of the mesh's own tunnel, never redirected; 0 for none")
    include_inbound_ports: Ports = _unset("destination ports redirected inbound")
    exclude_inbound_ports: Ports = _unset("destination ports that pass inbound")
    exclude_inbound_cidrs: Prefixes = _unset("sources that pass inbound")
    include_outbound_ports: Ports = _unset("destination ports redirected to any destination not excluded")
    exclude_outbound_ports: Ports = _unset("destination ports that pass outbound, TCP and UDP")
    exclude_outbound_ports_for_uids: list[UidExclusionModel] = _unset("the same for some uids only")
    include_outbound_cidrs: Prefixes = _unset("destinations redirected outbound")
    exclude_outbound_cidrs: Prefixes = _unset("destinations that pass outbound")
    exclude_interfaces: list[Interface] = _unset("interfaces left alone; a + at the end means a prefix")
    virtual_interfaces: list[Interface] = _unset("interfaces of guests, whose traffic counts as outbound")
    dns: Literal["off", "all"] | Annotated[list[Address], Field(min_length=1)] = _unset("servers captured")
    dns_protocols: Annotated[list[Literal["udp", "tcp"]], Field(min_length=1)] = _unset("DNS over what")
    dns_address: Address | list[Address] = _unset("where the proxy answers DNS, at most one per family")
    drop_invalid: Flag = _unset("drop packets that conntrack calls invalid")
    udp443: Literal["pass", "reject"] = _unset("reject makes HTTP/3 clients fall back to TCP")
    families: Literal["auto", "ipv4", "dual"] = _unset("auto follows the pod's addresses")
    self_calls_to_inbound: Flag = _unset("a service that calls itself meets inbound policy (row O4)")
    include_loopback: Flag = _unset("redirect also what stays on loopback")
    loopback_cidrs: Prefixes = _unset("destinations that are always local")
    include_outbound_gids: Ids = _unset("gids whose traffic is redirected")
    exclude_outbound_gids: Ids = _unset("gids whose traffic passes")
    passthrough_sources: Prefixes = _unset("sources of what the proxy passes on")
    tproxy_mark: Annotated[int, Strict(), Field(ge=1, le=0x7FFFFFFF)] = _unset(
        "mark; the next two are used too"
    )
    tproxy_table: Annotated[int, Strict(), Field(ge=1, le=0xFFFFFFFF)] = _unset(
        "routing table; not 253 to 255"
    )

    @field_validator("*", mode="after")
    @classmethod
    def _meant(cls, value: Any, info: ValidationInfo) -> Any:
        camel = _CAMEL[str(info.field_name)]
        if value and isinstance(value, list) and isinstance(value[0], UidExclusionModel):
            value = [item.given() for item in value]
        return _asked(FIELDS[camel][1], f"redirection.{camel}", value)


class NetconfModel(_Described):
    """The plugin's object in a conflist."""

    model_config = ConfigDict(
        extra="ignore", alias_generator=lambda field: _KEY.get(field, field), title="mesh-redirect"
    )

    cni_version: Literal["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] = Field(description="of the conflist")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        description="of the conflist"
    )
    type: Annotated[Any, WithJsonSchema({"type": "string"})] = _unset(
        "name of the executable", "mesh-redirect"
    )
    capabilities: Annotated[
        Any, WithJsonSchema({"type": "object", "additionalProperties": {"type": "boolean"}})
    ] = _unset("what the runtime is asked for; pod annotations need " + netconf.ANNOTATIONS)
    mesh: Annotated[str, Field(pattern="^[a-z][a-z0-9-]*$")] = _unset("dialect", Netconf.mesh)
    backends: Annotated[list[Literal["nftables", "iptables", "ebpf"]], Field(min_length=1)] = _unset(
        "order of preference; the first whose probe passes is used", list(Netconf.backends)
    )
    exclude_namespaces: list[Label] = _unset("namespaces whose pods pass", [])
    redirection: RedirectionModel = _unset("overrides of the dialect's defaults")
    agent: Literal["auto", "require", "never"] = _unset("whether the node's agent decides", "auto")
    agent_socket: Path = _unset("the agent's unix socket", Netconf.agent_socket)
    agent_namespace: Label = _unset("namespace of the agent's own pods", Netconf.agent_namespace)
    state_dir: Path = _unset("directory of the attachments' records", Netconf.state_dir)
    bpffs: Path = _unset("mounted bpffs in which eBPF programs are pinned", Netconf.bpffs)
    cgroup_root: Path = _unset("mount of cgroup version 2; default where the kernel says it is")
    cgroup: Path = _unset("cgroup of the sandbox where no pod uid tells; default cgroupRoot")
    log_level: Literal["debug", "info", "warn", "error"] = _unset("least level that is logged", "info")
    log_file: Path = _unset("log; default plugin.log in stateDir")

    @field_validator("*", mode="after")
    @classmethod
    def _meant(cls, value: Any, info: ValidationInfo) -> Any:
        field = str(info.field_name)
        if field in _REQUIRED:
            return _asked(_REQUIRED[field], field, value)
        if field in _OPTION and not isinstance(value, RedirectionModel):
            key = _OPTION[field]
            return _asked(netconf.OPTIONS[key][1], key, value)
        return value


def validate(document: dict[str, Any]) -> NetconfModel:
    """Return the netconf. Raises `pydantic.ValidationError` with every fault, not only the first."""
    return NetconfModel.model_validate(document)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the plugin's object in a conflist."""
    schema = NetconfModel.model_json_schema()
    # A field without a default of its own has the dialect's: "default": null would claim null is valid.
    for described in (schema, *schema["$defs"].values()):
        for field in described.get("properties", {}).values():
            if field.get("default", ...) is None:
                del field["default"]
    # Both stand beside "plugins" in the file, and the runtime copies them in.
    del schema["required"]
    return schema
