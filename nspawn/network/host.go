// Package network connects machines: it puts together what the packages below
// it do. Package links makes the link with its addresses, ports forwards ports and
// lets the machine reach others, firewall keeps the host's other firewalls from
// dropping its packets, and names makes the files by which it finds names.
//
// The kernel is the record: all that a machine has carries its name.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network/firewall"
	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/ports"
)

// Host is the network of this host. What it needs there is made with the first
// use. Its methods may be called at the same time. A nil Host has no networks, and
// machines neither.
type Host struct {
	mu       sync.Mutex // guards the fields up to reserved
	broken   error      // why it cannot be used
	pool     netip.Prefix
	links    *links.Host
	table    *ports.Table
	router   *links.RouterError // why there is no IPv6
	reserved map[string]*ports.Reservation

	firewall sync.Mutex // between looking at what is forwarded and changing the firewalls
	opened   bool
	findings []firewall.Finding
}

// New returns the network of this host. It touches nothing of the host.
func New() *Host { return &Host{reserved: map[string]*ports.Reservation{}} }

// SetPool has the operator choose the network that the addresses of veth links are
// of. It comes before the first use.
func (h *Host) SetPool(pool netip.Prefix) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pool = pool
}

var errNoNetworks = errors.New("this plugin has no networks")

// open makes what connections need on the host, once.
func (h *Host) open() (*links.Host, *ports.Table, error) {
	if h == nil {
		return nil, nil, errNoNetworks
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.links == nil {
		h.broken = h.make()
	}
	return h.links, h.table, h.broken
}

// openTable opens only the table, which tells what earlier plugins have made.
func (h *Host) openTable() (*ports.Table, error) {
	if h == nil {
		return nil, errNoNetworks
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.makeTable()
	return h.table, err
}

// errNoTables says that the kernel of this host has no nftables.
var errNoTables = errors.New("the kernel has no nftables")

// makeTable is for the holder of mu.
func (h *Host) makeTable() error {
	if h.table != nil {
		return nil
	}
	table, err := ports.Open()
	for _, lacks := range []error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL} {
		if errors.Is(err, lacks) {
			return fmt.Errorf("%w: %w", errNoTables, err)
		}
	}
	if err == nil {
		h.table = table
	}
	return err
}

// make is open for the holder of mu.
func (h *Host) make() error {
	if err := h.makeTable(); err != nil {
		return err
	}
	pool, err := links.ChoosePool(h.pool)
	if err != nil {
		return err
	}
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return fmt.Errorf("name the links of this host: %w", err)
	}
	made, err := links.New(pool, strings.TrimSpace(string(id)))
	if err != nil {
		return err
	}
	if err := links.EnableForwarding(); err != nil && !errors.As(err, &h.router) {
		return err
	}
	h.links = made
	return nil
}

// prefixes begin the names of links whose packets are to pass: ours, and those of
// systemd-nspawn for booted guests and zones.
var prefixes = []string{links.Prefix, "ve-", "vz-"}

// openFirewalls lets packets of machines pass, unless that has been done.
func (h *Host) openFirewalls(ctx context.Context) error {
	h.firewall.Lock()
	defer h.firewall.Unlock()
	if h.opened {
		return nil
	}
	return h.openLocked(ctx)
}

// firewallTimeout bounds the work of other programs, which may hang.
const firewallTimeout = 3 * time.Second

func (h *Host) openLocked(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, firewallTimeout)
	defer cancel()
	h.findings, err = firewall.Open(ctx, prefixes)
	h.opened = err == nil
	return err
}

// closeFirewalls undoes it when no machine is left.
func (h *Host) closeFirewalls(ctx context.Context, table *ports.Table) error {
	h.firewall.Lock()
	defer h.firewall.Unlock()
	owners, err := table.Owners()
	if err != nil || len(owners) > 0 {
		return err
	}
	h.opened, h.findings = false, nil
	ctx, cancel := context.WithTimeout(ctx, firewallTimeout)
	defer cancel()
	return firewall.Close(ctx, prefixes)
}

// Findings says what keeps machines from others on this host, for the operator.
func (h *Host) Findings() (found []string) {
	h.mu.Lock()
	if h.router != nil {
		found = append(found, h.router.Error())
	}
	if h.broken != nil {
		found = append(found, h.broken.Error())
	}
	h.mu.Unlock()
	h.firewall.Lock()
	defer h.firewall.Unlock()
	for _, finding := range h.findings {
		found = append(found, finding.String())
	}
	return found
}

// watchAgain is the time after which a watch that broke off is begun again.
const watchAgain = time.Second

// Watch restores what somebody removes from the host's firewall that machines need,
// until ctx ends. It tells what it has done or could not do.
func (h *Host) Watch(ctx context.Context, notice func(repaired string, err error)) {
	var watches sync.WaitGroup
	watches.Go(func() {
		h.again(ctx, notice, func(table *ports.Table) error {
			return table.Watch(ctx, func(repaired bool, err error) {
				if repaired {
					notice("table inet "+ports.TableName+", of which somebody had removed rules", err)
				} else {
					notice("", err)
				}
			})
		})
	})
	watches.Go(func() {
		h.again(ctx, notice, func(table *ports.Table) error {
			return firewall.Watch(ctx, func() {
				if err := h.reopenFirewalls(ctx, table); err != nil {
					notice("", err)
				}
			})
		})
	})
	watches.Wait()
}

func (h *Host) reopenFirewalls(ctx context.Context, table *ports.Table) error {
	h.firewall.Lock()
	defer h.firewall.Unlock()
	owners, err := table.Owners()
	if err != nil || len(owners) == 0 {
		return err
	}
	return h.openLocked(ctx)
}

// again calls watch until ctx ends, and tells each new error.
func (h *Host) again(ctx context.Context, notice func(string, error), watch func(*ports.Table) error) {
	last := ""
	for ctx.Err() == nil {
		table, err := h.openTable()
		if err == nil {
			err = watch(table)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			notice("", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchAgain):
		}
	}
}
