package links

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
)

// minRenewInterval is the shortest time between two attempts to renew a lease.
const minRenewInterval = time.Second / 2

// Keep renews the lease of a machine's address whenever half of it is over, until ctx
// ends. If the address has no end, Keep returns at once. It calls notice for each
// failure, and returns an error when the address has ended.
//
// The connection may be one of an earlier plugin: only Interface, MAC and IPv4 are
// needed, because the kernel stores when the address ends.
//
// The namespace is opened for each renewal. An open file would keep it alive after its
// container has ended.
func Keep(ctx context.Context, open func() (*os.File, error), machine string, c Connection, notice func(error)) error {
	expires, err := expiry(open, c)
	if err != nil || expires.IsZero() {
		return err
	}
	for {
		wait := time.Until(expires) / 2
		if wait <= 0 {
			return fmt.Errorf("keep address %s of machine %s: no server has renewed its lease in time", c.IPv4, machine)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(wait, minRenewInterval)):
		}
		next, err := renew(ctx, open, machine, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			notice(err)
			continue
		}
		expires = next
	}
}

func renew(ctx context.Context, open func() (*os.File, error), machine string, c Connection) (time.Time, error) {
	namespace, err := open()
	if err != nil {
		return time.Time{}, err
	}
	defer namespace.Close()
	return Renew(ctx, namespace, machine, c)
}

// expiry returns when the kernel will remove the container's address. A zero time means
// never.
func expiry(open func() (*os.File, error), c Connection) (time.Time, error) {
	namespace, err := open()
	if err != nil {
		return time.Time{}, err
	}
	defer namespace.Close()
	container, err := openContainer(namespace)
	if err != nil {
		return time.Time{}, err
	}
	defer container.Close()
	inside, err := container.end(c.Interface)
	if err != nil {
		return time.Time{}, err
	}
	list, err := container.addresses(inside.Link, netlink.FAMILY_V4)
	if err != nil {
		return time.Time{}, fmt.Errorf("list addresses of %s: %w", c.Interface, err)
	}
	for _, a := range list {
		address, _ := netip.AddrFromSlice(a.IP.To4())
		if address == c.IPv4.Addr() && a.ValidLft != math.MaxUint32 {
			return time.Now().Add(time.Duration(a.ValidLft) * time.Second), nil
		}
		if address == c.IPv4.Addr() {
			return time.Time{}, nil
		}
	}
	return time.Time{}, fmt.Errorf("find address %s on %s: it is gone", c.IPv4, c.Interface)
}
