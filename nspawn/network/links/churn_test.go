package links

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"nomad-driver-nspawn/e2e/host/networktest"
)

// TestWhileLinksChange looks at the host again and again while links and addresses come and
// go, as those of other machines do. The kernel says of a list that it has changed while it
// was read; that is no reason to fail.
func TestWhileLinksChange(t *testing.T) {
	host, h, container := networktest.New(t), newHost(t, "10.213.0.0/16"), networktest.Bare(t)
	host.IP(t, "link add vz-empty type bridge", "link add br0 type bridge", "addr add 10.66.0.1/24 dev br0")
	c, err := connect(t, host, container, h, Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	stop := make(chan struct{})
	for _, space := range []*networktest.Space{host.Twin(t), container.Twin(t)} {
		churned := make(chan error, 1)
		go func() { space.Do(func() { churned <- churn(stop) }) }()
		defer func() { must.NoError(t, <-churned) }()
	}
	defer close(stop)
	var br0 netlink.Link
	host.Do(func() { br0, err = netlink.LinkByName("br0") })
	must.NoError(t, err)
	look := func() error {
		space, err := openHost()
		if err != nil {
			return err
		}
		defer space.Close()
		var errs [5]error
		_, errs[0] = Owners()
		_, errs[1] = ChoosePool(h.pool4)
		_, errs[2] = h.free(space, Spec{Machine: "other"})
		_, errs[3] = space.emptyZones()
		_, errs[4] = advertisingLink()
		if !isNeighbor(br0, netip.MustParsePrefix("10.66.0.2/24")) {
			return errors.New("the network of br0 is not found")
		}
		return errors.Join(errs[:]...)
	}
	for n := range 100 {
		var err error
		host.Do(func() { err = look() })
		must.NoError(t, err, must.Sprint("look ", n))
		found, err := Find(open(t, container), Spec{Machine: "web", Kind: Veth})
		must.NoError(t, err)
		must.Eq(t, c.IPv4, found.IPv4)
		_, err = expiry(func() (*os.File, error) { return os.Open(container.Path) }, c)
		must.NoError(t, err)
	}
}

// TestRemoveTwice removes a link that has gone since it was found.
func TestRemoveTwice(t *testing.T) {
	host := networktest.New(t)
	host.IP(t, "link add br0 type bridge")
	host.Do(func() {
		space, err := openHost()
		if err != nil {
			t.Error(err)
			return
		}
		defer space.Close()
		link, err := space.LinkByName("br0")
		for range 2 {
			if err == nil {
				err = space.remove(link)
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// TestEchoOfASleeper asks for an echo when the time for it is over already, as a process
// finds that has got no CPU meanwhile.
func TestEchoOfASleeper(t *testing.T) {
	host, h := networktest.New(t), newHost(t, "10.213.0.0/16")
	c, err := connect(t, host, networktest.Bare(t), h, Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	for i, address := range c.addresses() {
		host.Do(func() { err = echo(t.Context(), time.Now().Add(-time.Hour), c.Gateways[i], address.Addr()) })
		must.NoError(t, err)
	}
}

// churn makes and removes links with addresses in the network namespace of this thread.
func churn(stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprint("churn", n%8)
		link := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		address, err := netlink.ParseAddr("10.77.0.1/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		if err := netlink.LinkDel(link); err != nil {
			return err
		}
	}
}
