package driver

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn/image/download"
)

// Registry says how images are fetched from registries.
type Registry struct {
	CAFile       string              `codec:"ca_file"`
	DockerConfig string              `codec:"docker_config"`
	Mirrors      map[string][]string `codec:"mirrors"`
	PlainHTTP    []string            `codec:"plain_http"`
}

var registrySpec = hclspec.NewBlock("registry", false, hclspec.NewObject(map[string]*hclspec.Spec{
	"ca_file":       hclspec.NewAttr("ca_file", "string", false),
	"docker_config": hclspec.NewAttr("docker_config", "string", false),
	"mirrors":       hclspec.NewAttr("mirrors", "map(list(string))", false),
	"plain_http":    hclspec.NewAttr("plain_http", "list(string)", false),
}))

func (r Registry) validate() error {
	errs := []error{
		absolute("registry.ca_file", r.CAFile),
		absolute("registry.docker_config", r.DockerConfig),
	}
	for i, host := range r.PlainHTTP {
		errs = append(errs, matches(fmt.Sprintf("registry.plain_http[%d]", i), host, registryHost, "a host or host:port"))
	}
	for _, host := range slices.Sorted(maps.Keys(r.Mirrors)) {
		errs = append(errs, matches("registry.mirrors", host, registryHost, "a host or host:port"))
	}
	return errors.Join(errs...)
}

var registryHost = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]+)?$`)

// validateImage checks what belongs to an image of the store.
func (c TaskConfig) validateImage() error {
	var errs []error
	refuse := func(unless bool, format string, values ...any) {
		if !unless {
			errs = append(errs, fmt.Errorf(format, values...))
		}
	}
	kind := c.imageKind()
	refuse(c.Auth == nil || kind == ociImage, "auth: only images of registries are logged in for")
	refuse(len(c.Entrypoint) == 0 || kind == ociImage, "entrypoint: only OCI images have one; put it into command")
	refuse(len(c.Entrypoint) == 0 || c.mode() != "boot", "entrypoint: cannot be combined with boot")
	refuse(c.ImagePolicy == "" || kind != ociImage, "image_policy: %q is no disk image", c.Image)
	refuse(c.PullPolicy == "" || c.stored(), "pull_policy: %q is not pulled", c.Image)
	refuse(c.Ephemeral || !c.stored(), "ephemeral: an image of the store is shared and cannot be run in place")
	if d := c.ImageDownload; d != nil {
		refuse(kind == fileImage || d.Type == dockerType, "image_download: %q is no file to download: set image_download.url", c.Image)
		errs = append(errs,
			oneOf("image_download.type", d.Type, []string{string(download.Tar), string(download.Raw), string(download.QCOW2), dockerType}),
			oneOf("image_download.verify", d.Verify, []string{string(download.VerifySignature), string(download.VerifyChecksum), string(download.VerifyNo)}),
			matches("image_download.sha256", d.SHA256, sha256Pattern, "64 hexadecimal digits"))
	}
	return errors.Join(errs...)
}

var sha256Pattern = regexp.MustCompile(`^(sha256:)?[0-9a-fA-F]{64}$`)
