"""`python -m DeepCache` is `deepcache`."""

from DeepCache.cli import main

if __name__ == "__main__":
    main()
