package nspawn

import (
	"testing"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"nomad-driver-nspawn/nspawn/network/links"
)

// An interface of the host that a container had comes back with the name and the alias that
// the container gave it. It is not of a machine whose parts, by paths, are somebody else's.
func TestHostAttackOwnerOfLink(t *testing.T) {
	m := newManager(t)
	const evil = "../../../srv/victim"
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: links.LinkName(evil)}, PeerName: "evil-peer"}
	must.NoError(t, netlink.LinkAdd(link))
	t.Cleanup(func() { must.NoError(t, netlink.LinkDel(link)) })
	must.NoError(t, netlink.LinkSetAlias(link, evil))
	owners, err := links.Owners()
	must.NoError(t, err)
	must.SliceContains(t, owners, evil) // so the attempt is a real one
	records, err := m.Machines(t.Context())
	must.NoError(t, err)
	for _, record := range records {
		must.NotEq(t, evil, record.Machine)
	}
}
