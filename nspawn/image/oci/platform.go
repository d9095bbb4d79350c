package oci

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// baseVariant is the implied variant of an architecture without one (OCI image spec 1.1,
// image-index.md "Platform Variants"; for amd64 the levels of the x86-64 psABI).
var baseVariant = map[string]string{"amd64": "v1", "arm": "v7", "arm64": "v8"}

// level returns a variant as a number. A processor with a higher level runs images for
// lower levels of the same architecture. ok is false if the variant is not a number.
func level(p v1.Platform) (_ float64, ok bool) {
	variant := p.Variant
	if variant == "" {
		variant = baseVariant[p.Architecture]
	}
	number, hasLevel := strings.CutPrefix(variant, "v")
	if !hasLevel {
		return 0, variant == ""
	}
	level, err := strconv.ParseFloat(number, 64)
	return level, err == nil
}

// runs reports whether a machine of platform on can run an image for platform of.
func runs(on, of v1.Platform) bool {
	if on.OS == of.OS && on.Architecture == "amd64" && of.Architecture == "386" {
		return true // containerd does the same
	}
	if on.OS != of.OS || on.Architecture != of.Architecture {
		return false
	}
	if on.Variant == of.Variant {
		return true
	}
	has, known := level(on)
	needs, comparable := level(of)
	return known && comparable && needs <= has
}

// choose returns the best matching manifest of an index. fits is false if the manifest
// does not name a platform and is returned because it is the only one.
func choose(manifests []v1.Descriptor, on v1.Platform) (_ v1.Descriptor, fits bool, _ error) {
	var best *v1.Descriptor
	for i, m := range manifests {
		if m.Platform == nil || !runs(on, *m.Platform) {
			continue
		}
		if best == nil || better(*m.Platform, *best.Platform) {
			best = &manifests[i]
		}
	}
	if best != nil {
		return *best, true, nil
	}
	if len(manifests) == 1 && manifests[0].Platform == nil {
		return manifests[0], false, nil
	}
	return v1.Descriptor{}, false, noPlatform(on, platforms(manifests))
}

func better(a, b v1.Platform) bool {
	if a.Architecture != b.Architecture {
		return b.Architecture == "386"
	}
	levelA, _ := level(a)
	levelB, _ := level(b)
	return levelA > levelB
}

// platforms lists the platforms in an index. The platform unknown/unknown marks documents
// that are not images, such as attestations of BuildKit.
func platforms(manifests []v1.Descriptor) []string {
	var all []string
	for _, m := range manifests {
		if m.Platform != nil && m.Platform.OS != "unknown" {
			all = append(all, m.Platform.String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func noPlatform(on v1.Platform, has []string) error {
	if len(has) == 0 {
		return fmt.Errorf("no image for platform %s, nor for any other", on)
	}
	return fmt.Errorf("no image for platform %s, only for %s", on, strings.Join(has, ", "))
}
