# Sourced: `apt_install PURPOSE PACKAGE...` with sudo when not root, or one clear sentence when that is impossible.
apt_install() {
  local purpose=$1 sudo=()
  shift
  if ! command -v apt-get >/dev/null; then
    echo "$purpose: no apt-get here; install the equivalents of these Debian packages: $*" >&2
    return 2
  fi
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "$purpose: neither root nor sudo; have an administrator run: apt-get install $*" >&2
      return 2
    fi
    sudo=(sudo)
  fi
  echo "$purpose: installing $*"
  export DEBIAN_FRONTEND=noninteractive
  "${sudo[@]}" apt-get update -qq </dev/null && "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null || {
    echo "$purpose: apt-get could not install $*; see its message above" >&2
    return 2
  }
}
