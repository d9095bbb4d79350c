package driver

import (
	"errors"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn"
)

// How roots are made is told, and if it is not the usual way, why.
func TestFingerprintRoot(t *testing.T) {
	unmappable, noOverlay := errors.New("cannot be ID-mapped"), errors.New("the kernel has no overlayfs")
	for kind, c := range map[string]struct {
		host   nspawn.Host
		health string
	}{
		"idmapped-overlay": {nspawn.Host{}, "Healthy"},
		"chowned-overlay": {
			nspawn.Host{Overlay: unmappable},
			"Healthy; owners of files are changed in a private copy for each task, which is slow: cannot be ID-mapped",
		},
		"": {
			nspawn.Host{Overlay: unmappable, ChownedOverlay: noOverlay},
			"Healthy; copy-on-write roots with user namespaces do not work: the kernel has no overlayfs",
		},
	} {
		fingerprint := newFingerprint(Config{Enabled: true}, c.host)
		must.Eq(t, drivers.HealthStateHealthy, fingerprint.Health)
		must.Eq(t, c.health, fingerprint.HealthDescription)
		root, ok := fingerprint.Attributes["driver.nspawn.root"].GetString()
		must.True(t, ok)
		must.Eq(t, kind, root)
		idmapped, ok := fingerprint.Attributes["driver.nspawn.overlay.idmapped"].GetBool()
		must.True(t, ok)
		must.Eq(t, kind == idmappedOverlay, idmapped)
	}
}
