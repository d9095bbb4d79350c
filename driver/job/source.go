package job

import (
	"cmp"
	"errors"
	"net/url"
	"path"
	"path/filepath"
	"strings"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
)

// Source returns the origin of an image of the store, if the operator allows it. A path in
// it is the one of the job: the caller finds it on the host, and asks Policy.ImagePath.
func (c TaskConfig) Source(policy operator.Policy) (image.Source, error) {
	if c.ImageKind() == FileImage {
		return c.download(policy)
	}
	name := c.Image
	if d := c.ImageDownload; d != nil {
		name = cmp.Or(d.URL, name)
	}
	reference, err := oci.ParseReference(name)
	if err == nil && reference.Path == "" {
		err = policy.RegistryImage(reference)
	}
	return image.Source{Reference: reference}, schema.Prefixed("image: ", err)
}

func (c TaskConfig) download(policy operator.Policy) (source image.Source, err error) {
	request := download.Request{URL: c.Image}
	if d := c.ImageDownload; d != nil {
		request.URL = cmp.Or(d.URL, request.URL)
		request.SHA256, request.Verify = d.SHA256, download.Verify(d.Verify)
	}
	kind, err := c.fileKind(request.URL)
	if err != nil {
		return source, schema.Prefixed("image: ", err)
	}
	if kind != download.Tar && !filepath.IsAbs(request.URL) {
		if err := policy.DiskImage(); err != nil {
			return source, err
		}
	}
	if !image.IsDownload(request.URL) {
		if strings.Contains(request.URL, "://") { // not shown, because it may contain a password
			return source, errors.New("image_download.url: want http://…, https://…, or a path")
		}
		// The operator trusts the file, or the artifact block has verified it.
		request.Verify = cmp.Or(request.Verify, download.VerifyNo)
		return image.Source{Download: request, Kind: kind}, nil
	}
	if err := policy.WebImage(request); err != nil {
		return source, schema.Prefixed("image: ", err)
	}
	switch {
	case request.Verify == download.VerifyNo && request.SHA256 == "":
		if err := policy.UnverifiedImage(); err != nil {
			return source, err
		}
	case request.Verify == "" && strings.HasPrefix(request.URL, "https://"):
		request.Verify = download.VerifyChecksum
	case request.Verify == "":
		request.Verify = download.VerifySignature // an attacker who changes the file can also change its checksum
	}
	return image.Source{Download: request, Kind: kind}, nil
}

// fileKind returns the kind of a file by its name, or as the job says.
func (c TaskConfig) fileKind(address string) (download.Kind, error) {
	u, err := url.Parse(address)
	if err != nil { // which would show the URL
		return "", errors.New("the URL is malformed; special characters, in a password too, must be written as %XX")
	}
	var named download.Kind
	if c.ImageDownload != nil {
		named = download.Kind(c.ImageDownload.Type)
	}
	return download.KindOf(path.Base(u.Path), named)
}
