// Package network connects machines by means of the packages below it: links creates the
// link and its addresses, ports forwards ports and lets the machine reach others,
// firewall keeps other firewalls of the host from dropping the machine's packets, and
// names makes the files for name resolution.
//
// The kernel is the only record: everything in it that belongs to a machine carries the
// machine's name.
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

// Host manages the network of this host. It sets the host up at the first use. Its
// methods may be called concurrently. A nil Host manages no networks, for machines
// without any.
type Host struct {
	mu       sync.Mutex // guards the fields up to reserved
	broken   error      // the reason why the network cannot be used
	pool     netip.Prefix
	links    *links.Host
	table    *ports.Table
	router   *links.RouterError // the reason why there is no IPv6
	reserved map[string]*ports.Reservation

	firewall sync.Mutex // held between reading what is forwarded and changing the firewalls
	opened   bool
	findings []firewall.Finding
}

// New returns the network of this host. It does not change the host.
func New() *Host { return &Host{reserved: map[string]*ports.Reservation{}} }

// SetPool sets the network for the addresses of veth links, as the operator configures
// it. It must be called before the first use.
func (h *Host) SetPool(pool netip.Prefix) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pool = pool
}

var errNoNetworks = errors.New("this plugin has no networks")

// open sets the host up for connections, once.
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

// openTable opens only the table, which also contains the entries of earlier plugins.
func (h *Host) openTable() (*ports.Table, error) {
	if h == nil {
		return nil, errNoNetworks
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.makeTable()
	return h.table, err
}

// errNoTables means that the kernel does not support nftables.
var errNoTables = errors.New("the kernel has no nftables")

// makeTable opens the table if it is not open. The caller holds mu.
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

// make sets the host up. The caller holds mu.
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

// prefixes are the beginnings of the names of links whose packets firewalls must let
// pass: our links, and those of systemd-nspawn for booted guests and zones.
var prefixes = []string{links.Prefix, "ve-", "vz-"}

// openFirewalls lets packets of machines pass, unless that has been done already.
func (h *Host) openFirewalls(ctx context.Context) error {
	h.firewall.Lock()
	defer h.firewall.Unlock()
	if h.opened {
		return nil
	}
	return h.openLocked(ctx)
}

func (h *Host) openLocked(ctx context.Context) (err error) {
	h.findings, err = firewall.Open(ctx, prefixes)
	h.opened = err == nil
	return err
}

// closeFirewalls reverts openFirewalls when no machine is left.
func (h *Host) closeFirewalls(ctx context.Context, table *ports.Table) error {
	h.firewall.Lock()
	defer h.firewall.Unlock()
	owners, err := table.Owners()
	if err != nil || len(owners) > 0 {
		return err
	}
	h.opened, h.findings = false, nil
	return firewall.Close(ctx, prefixes)
}

// Findings returns, for the operator, the reasons why machines may not reach others on
// this host.
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

// watchRetryDelay is the time after which a watch that has failed is started again.
const watchRetryDelay = time.Second

// Watch restores rules in the host's firewall that machines need and that someone has
// removed, until ctx ends. It calls notice for each repair and each failure.
func (h *Host) Watch(ctx context.Context, notice func(repaired string, err error)) {
	var watches sync.WaitGroup
	watches.Go(func() {
		h.retryWatch(ctx, notice, func(table *ports.Table) error {
			return table.Watch(ctx, func(repaired bool, err error) {
				if repaired {
					notice("table inet "+ports.TableName+", from which rules had been removed", err)
				} else {
					notice("", err)
				}
			})
		})
	})
	watches.Go(func() {
		h.retryWatch(ctx, notice, func(table *ports.Table) error {
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

// retryWatch calls watch again and again until ctx ends, and calls notice for each new
// error.
func (h *Host) retryWatch(ctx context.Context, notice func(string, error), watch func(*ports.Table) error) {
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
		case <-time.After(watchRetryDelay):
		}
	}
}
