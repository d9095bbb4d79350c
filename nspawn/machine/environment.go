package machine

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/systemd"
)

// The environment reaches the payload through a file of mode 0600, which
// systemd reads into the environment of systemd-nspawn, and `--setenv=NAME`,
// which takes the value from there. So no value is on a command line or in a
// property of the unit, both of which every user of the host can read.

var environmentName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ValidEnvironmentName says whether systemd takes a variable of this name
// (env_name_is_valid in systemd's env-util.c).
func ValidEnvironmentName(name string) bool { return environmentName.MatchString(name) }

// hostVariables are the variables that would change what systemd-nspawn does
// on the host, as root, before the payload is started: those of the dynamic
// loader and libc (ld.so(8), "secure-execution mode", and environ(7)), of
// systemd (systemd-nspawn(1), ENVIRONMENT.md) and of the libraries it loads.
// They must not be in its environment, so they go on its command line. Where names
// of a prefix are those of secrets, too, as SSL_KEY_PASSWORD, only those are meant that
// the libraries of Debian 12 to forky look at.
var hostVariables = regexp.MustCompile(`^(` + strings.Join([]string{
	`LD_.*`, `GLIBC_.*`, `MALLOC_.*`, `GCONV_PATH`, `GETCONF_DIR`, `HOSTALIASES`,
	`LOCALDOMAIN`, `LOCPATH`, `NIS_PATH`, `NLSPATH`, `RES_OPTIONS`,
	`RESOLV_HOST_CONF`, `TMPDIR`, `TEMP`, `TMP`, `TZ`, `TZDIR`, `PATH`, `HOME`, `TERM`,
	`SYSTEMD_.*`, `UNIFIED_CGROUP_HIERARCHY`, `SD_EVENT_PROFILE_DELAYS`, `MEMORY_PRESSURE_.*`, `LOG_NAMESPACE`,
	`FDSTORE`, `NOTIFY_SOCKET`, `LISTEN_.*`, `WATCHDOG_.*`,
	`DBUS_(SESSION_BUS|SYSTEM_BUS|STARTER)_ADDRESS`, `DBUS_STARTER_BUS_TYPE`,
	`CREDENTIALS_DIRECTORY`, `RUNTIME_DIRECTORY`, `STATE_DIRECTORY`,
	`CACHE_DIRECTORY`, `LOGS_DIRECTORY`, `CONFIGURATION_DIRECTORY`,
	`INVOCATION_ID`, `JOURNAL_STREAM`, `MAINPID`, `MANAGERPID`, `XDG_.*`,
	`OPENSSL_.*`, `SSL_CERT_(FILE|DIR)`, `SSLKEYLOGFILE`, `GNUTLS_.*`, `GCRYPT_.*`, `LIBGCRYPT_.*`,
	`P11_.*`, `PKCS11_MODULE_PATH`, `PKCS11_PROVIDER_(MODULE|DEBUG)`, `TSS2_.*`,
	`TPM2(OPENSSL|TSSENGINE|TOOLS|_PKCS11)_TCTI`, `TPM2_PKCS11_(STORE|BACKEND|LOG_LEVEL)`, `LIBMOUNT_.*`, `LIBBLKID_.*`, `BLKID_.*`,
	`LIBSECCOMP_.*`, `SELINUX.*`, `XTABLES_.*`, `IPTABLES_.*`, `LIBCRYPTSETUP_.*`,
	`DM_(ABORT_ON_INTERNAL_ERRORS|DEBUG_WITH_LINE_NUMBERS|DEFAULT_NAME_MANGLING_MODE|DISABLE_UDEV)`,
	`KMOD_.*`, `MODPROBE_.*`, `ENV`, `BASH_.*`, `SHELL`, `SHELLOPTS`, `IFS`,
	`ASAN_.*`, `UBSAN_.*`, `LSAN_.*`, `MSAN_.*`, `TSAN_.*`,
}, "|") + `)$`)

// environmentArgs hands the environment to the payload, by name.
func environmentArgs(env map[string]string) []string {
	var args []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if hostVariables.MatchString(name) {
			args = append(args, "--setenv="+name+"="+env[name])
		} else {
			args = append(args, "--setenv="+name)
		}
	}
	return args
}

type environmentFileEntry struct {
	Path     string
	Optional bool
}

func environmentProperties(h Host) []systemd.Property {
	return []systemd.Property{
		systemd.NewProperty("EnvironmentFiles", []environmentFileEntry{{Path: h.Environment}}),
		systemd.NewProperty("Environment", []string{
			"NOTIFY_SOCKET=" + h.Notify,
			// nspawn's own messages belong into the journal of the unit, not
			// between the lines of the payload.
			"SYSTEMD_LOG_TARGET=journal",
		}),
	}
}

// EnvironmentFile is the content of the unit's EnvironmentFile=. Within double
// quotes a backslash protects `"`, `\`, `$` and the backtick, and newlines
// stand for themselves (systemd.exec(5); load_env_file in env-file.c).
func EnvironmentFile(env map[string]string) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`")
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !hostVariables.MatchString(name) {
			fmt.Fprintf(&b, "%s=\"%s\"\n", name, quote.Replace(env[name]))
		}
	}
	return b.String()
}
