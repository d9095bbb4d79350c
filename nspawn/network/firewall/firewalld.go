package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const firewalld = "org.fedoraproject.FirewallD1"

// zone is a firewalld zone that forwards incoming packets, and keeps most of the host's
// services closed. It belongs to NetworkManager, for shared connections, and exists only
// if NetworkManager is installed (/usr/lib/firewalld/zones/nm-shared.xml).
//
// Links remain in the zone until firewalld reloads, so the stored configuration does not
// change. Zones and policies of our own would need a reload, and a reload discards all
// changes that the operator has not stored.
const zone = "nm-shared"

// openFirewalld adds the links to the zone, unless the operator has added them to another
// one. It does nothing if firewalld is not running.
func openFirewalld(ctx context.Context, prefixes []string) (finding *Finding, err error) {
	err = eachLink(ctx, prefixes, func(ctx context.Context, bus dbus.BusObject, link string) error {
		var in string
		if err := bus.CallWithContext(ctx, firewalld+".zone.getZoneOfInterface", dbus.FlagNoAutoStart, link).Store(&in); err != nil {
			return fmt.Errorf("find the zone of links %s in firewalld: %w", link, err)
		}
		var zones []string
		if err := bus.CallWithContext(ctx, firewalld+".zone.getZones", dbus.FlagNoAutoStart).Store(&zones); err != nil {
			return fmt.Errorf("list zones of firewalld: %w", err)
		}
		if in != "" {
			return nil
		}
		if !slices.Contains(zones, zone) {
			finding = firewalldFinding(prefixes)
			return nil
		}
		err := bus.CallWithContext(ctx, firewalld+".zone.addInterface", dbus.FlagNoAutoStart, zone, link).Err
		if err != nil && !hasCode(err, "ZONE_ALREADY_SET") {
			return fmt.Errorf("add links %s to zone %s of firewalld, which `firewall-cmd --zone=%s --add-interface=%s` also does: %w", link, zone, zone, link, err)
		}
		return nil
	})
	return finding, err
}

func firewalldFinding(prefixes []string) *Finding {
	commands := []string{"--new-zone=nspawn"}
	for _, prefix := range prefixes {
		commands = append(commands, "--zone=nspawn --add-interface="+prefix+"+")
	}
	commands = append(commands, "--new-policy=nspawn-out", "--policy=nspawn-out --set-target=ACCEPT",
		"--policy=nspawn-out --add-ingress-zone=nspawn", "--policy=nspawn-out --add-egress-zone=ANY")
	for i, command := range commands {
		commands[i] = "firewall-cmd --permanent " + command
	}
	return &Finding{
		Problem: "firewalld may reject what containers send to other machines and to each other",
		Remedy:  strings.Join(append(commands, "firewall-cmd --reload"), " && "),
	}
}

func closeFirewalld(ctx context.Context, prefixes []string) error {
	return eachLink(ctx, prefixes, func(ctx context.Context, bus dbus.BusObject, link string) error {
		err := bus.CallWithContext(ctx, firewalld+".zone.removeInterface", dbus.FlagNoAutoStart, zone, link).Err
		isOut := func(code string) bool { return hasCode(err, code) }
		if err != nil && !slices.ContainsFunc([]string{"UNKNOWN_INTERFACE", "NOT_ENABLED", "ZONE_CONFLICT", "INVALID_ZONE"}, isOut) {
			return fmt.Errorf("remove links %s from zone %s of firewalld: %w", link, zone, err)
		}
		return nil
	})
}

// hasCode reports whether firewalld has returned an error code.
func hasCode(err error, code string) bool { return strings.Contains(err.Error(), code) }

// eachLink calls do for the link pattern of each prefix, if firewalld is running.
func eachLink(ctx context.Context, prefixes []string, do func(ctx context.Context, bus dbus.BusObject, link string) error) error {
	// A bus that takes the connection and does not answer holds nobody up for ever.
	ctx, cancelAll := context.WithTimeout(ctx, time.Duration(2+len(prefixes))*programTimeout)
	defer cancelAll()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil // Without the bus, firewalld cannot run either.
	}
	defer conn.Close()
	var runs bool
	asking, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	err = conn.BusObject().CallWithContext(asking, "org.freedesktop.DBus.NameHasOwner", 0, firewalld).Store(&runs)
	if err != nil || !runs {
		return err
	}
	bus := conn.Object(firewalld, "/org/fedoraproject/FirewallD1")
	var errs []error
	for _, prefix := range prefixes {
		ctx, cancel := context.WithTimeout(ctx, programTimeout)
		errs = append(errs, do(ctx, bus, prefix+"+"))
		cancel()
	}
	return errors.Join(errs...)
}
