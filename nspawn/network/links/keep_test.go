package links

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/networktest"
)

// TestKeep renews a lease of an earlier plugin, and checks that the address ends if it is
// not renewed.
func TestKeep(t *testing.T) {
	host, h, container := networktest.New(t), newHost(t, "10.213.0.0/16"), networktest.Bare(t)
	host.IP(t, "link add br0 type bridge", "link set br0 up", "addr add 10.66.0.1/24 dev br0")
	requests := serveDHCP(t, host, "br0")
	c, err := connect(t, host, container, h, Spec{Machine: "web", Kind: Bridge, Of: "br0"})
	must.NoError(t, err)
	<-requests
	c = Connection{Interface: c.Interface, MAC: c.MAC, IPv4: c.IPv4} // the fields that a later plugin knows
	open := func() (*os.File, error) { return os.Open(container.Path) }
	unexpected := func(err error) { t.Error(err) }

	container.IP(t, "addr change 10.66.0.50/24 dev host0 valid_lft 4 preferred_lft 4")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Keep(ctx, open, "web", c, unexpected) }()
	must.Eq(t, "web 10.66.0.50", <-requests)
	for start := time.Now(); ; { // the answer may not have arrived yet
		expires, err := expiry(open, c)
		must.NoError(t, err)
		if time.Until(expires) > 50*time.Minute {
			break
		}
		must.Less(t, 5*time.Second, time.Since(start))
	}
	cancel()
	must.ErrorIs(t, <-ended, context.Canceled)

	container.IP(t, "addr change 10.66.0.50/24 dev host0 valid_lft forever preferred_lft forever")
	must.NoError(t, Keep(t.Context(), open, "web", c, unexpected)) // the address is static

	container.IP(t, "addr change 10.66.0.50/24 dev host0 valid_lft 2 preferred_lft 2")
	host.IP(t, "link set br0 down")
	failures := make(chan error, 100)
	err = Keep(t.Context(), open, "web", c, func(err error) { failures <- err })
	must.ErrorContains(t, err, "no server has renewed its lease in time")
	must.ErrorContains(t, <-failures, "renew lease of 10.66.0.50/24 on host0 of machine web")
	container.IP(t, "addr flush dev host0")
	must.ErrorContains(t, Keep(t.Context(), open, "web", c, unexpected), "find address 10.66.0.50/24 on host0: it is gone")

	host.IP(t, "link set br0 up")
	namespace, err := open()
	must.NoError(t, err)
	defer namespace.Close()
	var again Connection
	host.Do(func() { again, err = h.Lease(t.Context(), namespace, Spec{Machine: "web", Kind: Bridge, Of: "br0"}, c) })
	must.NoError(t, err)
	must.Eq(t, c.IPv4, again.IPv4)
	must.StrContains(t, container.Run(t, "ip", "addr", "show", "dev", "host0"), "inet 10.66.0.50/24")
}

// TestTrust checks that addresses are refused that do not belong to the network.
func TestTrust(t *testing.T) {
	for _, address := range []string{"127.0.0.1/32", "224.0.0.1/4", "169.254.1.1/16"} {
		c := Connection{IPv4: netip.MustParsePrefix(address)}
		must.ErrorContains(t, c.checkAddress(Spec{Kind: Bridge, Of: "br0"}), address)
	}
	must.NoError(t, Connection{IPv4: netip.MustParsePrefix("192.0.2.5/24")}.checkAddress(Spec{Kind: Bridge, Of: "br0"}))
}
