package job

import (
	"maps"
	"regexp"
	"slices"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

type registryOptions struct {
	Registry Registry `codec:"registry"`
}

// Registry says how images are fetched from registries.
type Registry struct {
	CAFile       string              `codec:"ca_file"`
	DockerConfig string              `codec:"docker_config"`
	Mirrors      map[string][]string `codec:"mirrors"`
	PlainHTTP    []string            `codec:"plain_http"`
}

var registrySchema = options{
	"registry": block("registry", options{
		"ca_file":       attr("ca_file", "string"),
		"docker_config": attr("docker_config", "string"),
		"mirrors":       hclspec.NewBlockAttrs("mirrors", "list(string)", false), // as stringMap
		"plain_http":    attr("plain_http", "list(string)"),
	}),
}

var registryHost = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]+)?$`)

func (c Config) validateRegistry() error {
	var found mistakes
	r := c.Registry
	found.add(absolute("registry.ca_file", r.CAFile), absolute("registry.docker_config", r.DockerConfig))
	for i, host := range r.PlainHTTP {
		found.add(matches(at("registry.plain_http", i), host, registryHost, "a host or host:port"))
	}
	for _, host := range slices.Sorted(maps.Keys(r.Mirrors)) {
		found.add(matches("registry.mirrors", host, registryHost, "a host or host:port"))
	}
	return found.err()
}
