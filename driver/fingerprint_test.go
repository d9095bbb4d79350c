package driver

import (
	"errors"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/quota"
)

func TestFingerprint(t *testing.T) {
	good := nspawn.Host{
		Systemd: "257.13-1~deb13u1", Version: 257, Nspawn: "/usr/bin/systemd-nspawn",
		Controllers: []string{"memory", "cpu"}, Machined: true, Networkd: true, Resolved: true,
	}
	with := func(problems ...error) nspawn.Host {
		host := good
		host.Problems = problems
		return host
	}
	bare := with(errors.New("systemd-nspawn is not installed"), errors.New("no bus"))
	bare.Nspawn, bare.Version = "", 0
	const enabled, disabled = "", "enabled = false"
	for name, c := range map[string]struct {
		plugin      string
		host        nspawn.Host
		health      drivers.HealthState
		description string
	}{
		"good":        {enabled, good, drivers.HealthStateHealthy, drivers.DriverHealthy},
		"disabled":    {disabled, good, drivers.HealthStateUndetected, "disabled: the plugin's config has enabled = false"},
		"no machined": {enabled, with(errors.New("no machined")), drivers.HealthStateUnhealthy, "no machined"},
		"two":         {enabled, with(errors.New("too old"), errors.New("is not cgroup v2")), drivers.HealthStateUnhealthy, "too old; is not cgroup v2"},
		"no nspawn":   {enabled, bare, drivers.HealthStateUndetected, "systemd-nspawn is not installed; no bus"},
	} {
		t.Run(name, func(t *testing.T) {
			fingerprint := newFingerprint(parseConfig(t, c.plugin), c.host)
			must.Eq(t, c.health, fingerprint.Health)
			must.Eq(t, c.description, fingerprint.HealthDescription)
			must.NoError(t, fingerprint.Err) // with an error, Nomad would stop asking
		})
	}
}

// TestAttributes checks the attributes on which jobs put constraints.
func TestAttributes(t *testing.T) {
	host := nspawn.Host{
		Version: 252, Controllers: []string{"memory", "cpu"}, Machined: true,
		UserNamespaces: errors.New("off"), QuotaKind: quota.Qgroup,
	}
	show := func(plugin string, host nspawn.Host) map[string]string {
		shown := map[string]string{}
		for name, value := range newFingerprint(parseConfig(t, plugin), host).Attributes {
			shown[name] = value.GoString()
		}
		return shown
	}
	got := show("volumes = true", host)
	for name, want := range map[string]string{
		"driver.nspawn": "true", "driver.nspawn.systemd.version": "252", "driver.nspawn.cgroup.controllers": "cpu,memory",
		"driver.nspawn.machined": "true", "driver.nspawn.networkd": "false", "driver.nspawn.resolved": "false",
		"driver.nspawn.userns": "false", "driver.nspawn.overlay.idmapped": "true", "driver.nspawn.root": "idmapped-overlay", "driver.nspawn.disk.limit": "btrfs",
		"driver.nspawn.volumes.enabled": "true", "driver.nspawn.host_network": "false", "driver.nspawn.privileged.enabled": "false", "driver.nspawn.version": Version,
	} {
		must.StrContains(t, got[name], want, must.Sprint(name))
		delete(got, name)
	}
	must.MapEmpty(t, got)
	// All attributes are sent even if they are empty, because Nomad keeps the last value
	// of one that is missing.
	must.MapLen(t, 14, show("", nspawn.Host{}))
}

// TestFingerprintRoot checks that the fingerprint says how roots are made, and why, if it
// is not the usual way.
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
		fingerprint := newFingerprint(operator.Config{Enabled: true}, c.host)
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
