package machine

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestEnvironmentIsNotOnTheCommandLine(t *testing.T) {
	env := map[string]string{"TOKEN": "secret", "A": ""}
	must.Eq(t, []string{"--setenv=A", "--setenv=TOKEN"}, environmentArgs(env))
	must.Eq(t, "A=\"\"\nTOKEN=\"secret\"\n", EnvironmentFile(env))
}

func TestEnvironmentFileQuotes(t *testing.T) {
	must.Eq(t, "A=\"a\\\"b\\\\c\\$d\\`e\nf #;\"\n", EnvironmentFile(map[string]string{"A": "a\"b\\c$d`e\nf #;"}))
}

// What would act on systemd-nspawn itself must not get into its environment.
func TestHostVariablesStayOutOfTheFile(t *testing.T) {
	for _, name := range []string{
		"LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GLIBC_TUNABLES", "GCONV_PATH", "PATH", "TMPDIR", "NOTIFY_SOCKET",
		"SYSTEMD_SECCOMP", "SYSTEMD_NSPAWN_API_VFS_WRITABLE", "SYSTEMD_LOG_TARGET", "OPENSSL_CONF", "OPENSSL_MODULES",
		"DBUS_SYSTEM_BUS_ADDRESS", "LIBMOUNT_FSTAB", "XTABLES_LIBDIR", "TSS2_TCTI", "LISTEN_FDS", "MALLOC_TRACE",
		"SSL_CERT_FILE", "PKCS11_PROVIDER_MODULE", "TPM2OPENSSL_TCTI", "TPM2_PKCS11_STORE", "SD_EVENT_PROFILE_DELAYS", "DM_DISABLE_UDEV", "SHELLOPTS",
	} {
		env := map[string]string{name: "value"}
		must.Eq(t, "", EnvironmentFile(env), must.Sprint(name))
		must.Eq(t, []string{"--setenv=" + name + "=value"}, environmentArgs(env))
	}
	for _, name := range []string{
		"PASSWORD", "NOMAD_TOKEN", "VAULT_TOKEN", "XLD_PRELOAD", "TZX", "DB_PATH",
		"SSL_KEYSTORE_PASSWORD", "SSL_KEY", "PKCS11_PIN", "PIN", "TPM2_PIN", "TPM2_PKCS11_PIN", "SD_TOKEN", "DM_PASSWORD", "DBUS_COOKIE", "SHELL_TOKEN",
	} {
		must.False(t, hostVariables.MatchString(name), must.Sprint(name))
	}
}
