package oci

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/shoenig/test/must"
)

func platform(t *testing.T, s string) *v1.Platform {
	t.Helper()
	if s == "" {
		return nil
	}
	p, err := v1.ParsePlatform(s)
	must.NoError(t, err)
	return p
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		on    string
		index []string
		want  int // index of the chosen one, or -1
	}{
		{"linux/amd64", []string{"linux/arm64", "linux/amd64", "windows/amd64"}, 1},
		{"linux/amd64", []string{"linux/amd64/v3", "linux/amd64/v2", "linux/amd64"}, 2},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v4", "linux/amd64/v3", "linux/amd64/v2"}, 2},
		{"linux/amd64/v2", []string{"linux/amd64"}, 0},
		{"linux/amd64", []string{"linux/amd64/v1"}, 0},
		{"linux/arm64", []string{"linux/arm64/v8"}, 0},
		{"linux/arm64/v8", []string{"linux/arm64/v8.2", "linux/arm64"}, 1},
		{"linux/arm64", []string{"linux/arm/v7"}, -1},
		{"linux/arm/v6", []string{"linux/arm/v7", "linux/arm/v5", "linux/arm/v6"}, 2},
		{"linux/arm", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v8"}, 1},
		{"linux/ppc64le", []string{"linux/ppc64le/power9", "linux/ppc64le"}, 1},
		{"linux/ppc64le/power9", []string{"linux/ppc64le/power9"}, 0},
		{"linux/riscv64", []string{"linux/riscv64", "linux/riscv64"}, 0}, // the first of equal ones
		{"linux/amd64", []string{"unknown/unknown", "linux/amd64"}, 1},
		{"linux/amd64", []string{""}, 0},
		{"linux/amd64", []string{"", ""}, -1},
		{"linux/amd64", nil, -1},
		{"linux/amd64", []string{"linux/386", "linux/arm64"}, 0},
		{"linux/amd64", []string{"linux/386", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/amd64", "linux/386"}, 0},
		{"linux/386", []string{"linux/amd64"}, -1},
		{"linux/arm64", []string{"linux/386"}, -1},
	} {
		var index []v1.Descriptor
		for i, s := range c.index {
			index = append(index, v1.Descriptor{Size: int64(i), Platform: platform(t, s)})
		}
		got, _, err := choose(index, *platform(t, c.on))
		if c.want < 0 {
			must.ErrorContains(t, err, "no image for platform "+c.on, must.Sprintf("%+v", c))
			continue
		}
		must.NoError(t, err, must.Sprintf("%+v", c))
		must.Eq(t, int64(c.want), got.Size, must.Sprintf("%+v", c))
	}
}
