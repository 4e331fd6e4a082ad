"""What every controller needs, whatever kind it reconciles."""
